// Scheduler of the simulator. Compile it WITHOUT -fsanitize=thread, also where it is linked with kernels that have it:
// what the scheduler does itself would add order between threads that the kernel does not have.
// -DSIMULATOR_ASAN or -DSIMULATOR_TSAN tells the sanitizer of the kernels about fibers.
#include "engine.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(SIMULATOR_ASAN)
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(SIMULATOR_TSAN)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned);
void __tsan_destroy_fiber(void*);
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
}
#endif

// boost.context's C interface; swapcontext of the C library would cost two system calls a switch.
extern "C" {
struct transfer_t {
  void* context;
  void* data;
};
transfer_t jump_fcontext(void* to, void* data);
void* make_fcontext(void* stack_top, size_t size, void (*entry)(transfer_t));
}

namespace simulator {

// These live among the kernels, so that the sanitizers see what they touch (copy.cpp).
void poison_bytes(char* target, unsigned bytes);
void copy_bytes(char* target, const char* source, unsigned bytes, unsigned source_bytes);

Lane* current = nullptr;

namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr unsigned kMaxCopies = 64;        // cp.async of one thread under way
constexpr size_t kMaxShared = 48 << 10;    // what a launch may ask for without an opt-in
constexpr size_t kKeptFibers = 6000;       // TSan reuses the ids of destroyed fibers and then hides races between blocks
// With SWITCH_NO_SYNC: a switch of fibers is no synchronisation of threads.
[[maybe_unused]] constexpr unsigned kNoSync = 1;

enum class State { kReady, kAtBarrier, kInWarp, kDone };

struct Copy {
  void* target;
  const void* source;
  unsigned bytes, source_bytes, group;
};

struct Fiber : Lane {
  void* context = nullptr;
  State state = State::kReady;
  unsigned mask = 0;
  WarpOperation operation = nullptr;
  const char* name = "";
  Place place;
  Copy copies[kMaxCopies];
  unsigned copy_count = 0;
  unsigned group = 0;
  bool predicate = false;
  char* stack = nullptr;
  [[maybe_unused]] void* fake_stack = nullptr;
  [[maybe_unused]] void* sanitizer_fiber = nullptr;
};

std::vector<Fiber> fibers;
std::string order = "forward";
Body body;
void* body_argument;
void* scheduler_context;
void* shared;
char message[1024];

[[maybe_unused]] const void* scheduler_stack;
[[maybe_unused]] size_t scheduler_stack_bytes;
[[maybe_unused]] void* scheduler_fake_stack;

Fiber& self() { return *static_cast<Fiber*>(current); }

unsigned number(const Fiber& fiber) { return static_cast<unsigned>(&fiber - fibers.data()); }

void set_message(const std::string& text) {
  const size_t length = std::min(text.size(), sizeof message - 1);
  std::memcpy(message, text.data(), length);
  message[length] = 0;
}

// What the thread sanitizer must know: threads are ordered by barriers and by nothing else.
#if defined(SIMULATOR_TSAN)
char barrier_tag, exit_tag, warp_tags[64];
void* scheduler_fiber;
void* janitor;  // frees a block's memory: the scheduler must not learn of its work, or the next block would too
std::vector<void*> kept;

void tsan_switch(void* fiber) { __tsan_switch_to_fiber(fiber, kNoSync); }
void tsan_release(void* tag) { __tsan_release(tag); }
// At the moment a barrier opens, not when the thread goes on: it would learn of too much by then.
void tsan_acquire_as(Fiber& fiber, void* tag) {
  tsan_switch(fiber.sanitizer_fiber);
  __tsan_acquire(tag);
}
#endif

void to_scheduler([[maybe_unused]] bool for_good = false) {
#if defined(SIMULATOR_TSAN)
  tsan_switch(scheduler_fiber);
#endif
#if defined(SIMULATOR_ASAN)
  Fiber& fiber = self();
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fiber.fake_stack, scheduler_stack, scheduler_stack_bytes);
#endif
  scheduler_context = jump_fcontext(scheduler_context, nullptr).context;
#if defined(SIMULATOR_ASAN)
  __sanitizer_finish_switch_fiber(fiber.fake_stack, &scheduler_stack, &scheduler_stack_bytes);
#endif
}

void to_fiber(Fiber& fiber) {
  current = &fiber;
#if defined(SIMULATOR_TSAN)
  tsan_switch(fiber.sanitizer_fiber);
#endif
#if defined(SIMULATOR_ASAN)
  __sanitizer_start_switch_fiber(&scheduler_fake_stack, fiber.stack, kStackBytes);
#endif
  fiber.context = jump_fcontext(fiber.context, nullptr).context;
#if defined(SIMULATOR_ASAN)
  __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
}

void fiber_main(transfer_t from) {
  scheduler_context = from.context;
#if defined(SIMULATOR_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
  body(body_argument);
  Fiber& fiber = self();
  if (fiber.copy_count > 0) set_message("a thread exits with cp.async under way");
#if defined(SIMULATOR_TSAN)
  tsan_release(&exit_tag);
#endif
  fiber.state = State::kDone;
  to_scheduler(true);
}

std::string describe(const Fiber& fiber) {
  char text[400];
  snprintf(text, sizeof text, "block (%u,%u,%u) thread %u in %s at %s:%u", fiber.block.x, fiber.block.y, fiber.block.z,
           number(fiber), fiber.state == State::kAtBarrier ? "__syncthreads" : fiber.name, fiber.place.file_name(),
           fiber.place.line());
  return text;
}

bool same_place(const Place& a, const Place& b) { return a.line() == b.line() && a.column() == b.column(); }

// Nobody can run: every thread is at one barrier, or something is wrong.
void open_barrier(size_t done) {
  const Fiber* first = nullptr;
  size_t waiting = 0;
  for (const Fiber& fiber : fibers) {
    if (fiber.state == State::kInWarp) return set_message("deadlock: " + describe(fiber) + " waits for its warp");
    if (fiber.state != State::kAtBarrier) continue;
    if (first == nullptr) first = &fiber;
    if (!same_place(fiber.place, first->place)) {
      return set_message("divergent __syncthreads: " + describe(*first) + " but " + describe(fiber));
    }
    ++waiting;
  }
  if (done > 0) {
    return set_message("__syncthreads after " + std::to_string(done) + " threads exited: " + describe(*first));
  }
  for (Fiber& fiber : fibers) {
    fiber.state = State::kReady;
#if defined(SIMULATOR_TSAN)
    tsan_acquire_as(fiber, &barrier_tag);
#endif
  }
#if defined(SIMULATOR_TSAN)
  tsan_switch(scheduler_fiber);
#endif
}

void run_block(std::vector<unsigned>& turns, std::mt19937& random) {
  const bool shuffled = order.rfind("random", 0) == 0;
  for (size_t done = 0; done < fibers.size();) {
    if (shuffled) std::shuffle(turns.begin(), turns.end(), random);
    bool progress = false;
    for (unsigned turn : turns) {
      Fiber& fiber = fibers[turn];
      if (fiber.state != State::kReady) continue;
      progress = true;
      to_fiber(fiber);
      done += fiber.state == State::kDone;
      if (*message) return;
    }
    if (!progress) open_barrier(done);
    if (*message) return;
  }
}

void start_fibers(uint3 block, dim3 grid, dim3 size, char* stacks) {
  const size_t count = fibers.size();
  for (size_t i = 0; i < count; ++i) {
    Fiber& fiber = fibers[i] = Fiber();
    const auto n = static_cast<unsigned>(i);
    fiber.thread = {n % size.x, n / size.x % size.y, n / size.x / size.y};
    fiber.block = block;
    fiber.block_size = size;
    fiber.grid_size = grid;
    fiber.lane = n & 31;
    fiber.warp = n >> 5;
    fiber.stack = stacks + i * kStackBytes;
#if defined(SIMULATOR_TSAN)
    fiber.sanitizer_fiber = __tsan_create_fiber(0);
    fiber.stack = static_cast<char*>(malloc(kStackBytes));  // fresh, or the last block's use of it would seem a race
#endif
    fiber.context = make_fcontext(fiber.stack + kStackBytes, kStackBytes, fiber_main);
  }
}

void end_block() {
#if defined(SIMULATOR_TSAN)
  tsan_release(&janitor);
  tsan_switch(janitor);
  __tsan_acquire(&janitor);
  __tsan_acquire(&exit_tag);
  for (Fiber& fiber : fibers) {
    free(fiber.stack);
    kept.push_back(fiber.sanitizer_fiber);
  }
#endif
  free(shared);
#if defined(SIMULATOR_TSAN)
  tsan_switch(scheduler_fiber);
  if (kept.size() > kKeptFibers) {
    for (void* fiber : kept) __tsan_destroy_fiber(fiber);
    kept.clear();
  }
#endif
}

void begin_launch() {
#if defined(SIMULATOR_TSAN)
  scheduler_fiber = __tsan_get_current_fiber();
  janitor = __tsan_create_fiber(0);
  kept.reserve(kKeptFibers + 1024);
#endif
}

// A launch is over when all its threads are: the next one, and the caller, see everything.
void end_launch() {
#if defined(SIMULATOR_TSAN)
  __tsan_acquire(&exit_tag);
  for (void* fiber : kept) __tsan_destroy_fiber(fiber);
  kept.clear();
  __tsan_destroy_fiber(janitor);
#endif
}

}  // namespace

void fail(const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  Fiber& fiber = self();
  char place[128];
  snprintf(place, sizeof place, " [block (%u,%u,%u) thread %u]", fiber.block.x, fiber.block.y, fiber.block.z, number(fiber));
  set_message(std::string(text) + place);
  fiber.state = State::kDone;
  to_scheduler(true);
  abort();
}

void set_order(const char* chosen) { order = chosen; }

void* shared_memory() { return shared; }

void block_barrier(const Place& place) {
  Fiber& fiber = self();
  fiber.place = place;
  fiber.state = State::kAtBarrier;
#if defined(SIMULATOR_TSAN)
  tsan_release(&barrier_tag);
#endif
  to_scheduler();
}

unsigned block_vote(bool predicate, Vote vote, const Place& place) {
  self().predicate = predicate;
  block_barrier(place);
  unsigned votes = 0;
  for (const Fiber& fiber : fibers) votes += fiber.predicate;
  block_barrier(place);
  if (vote == Vote::kCount) return votes;
  return vote == Vote::kAll ? votes == fibers.size() : votes > 0;
}

void warp_operation(unsigned mask, WarpOperation operation, const void* input, void* output,
                    [[maybe_unused]] bool orders_memory, const char* name, const Place& place) {
  Fiber& fiber = self();
  Fiber* warp = &fibers[fiber.warp * 32];
  const auto lanes = static_cast<unsigned>(std::min<size_t>(32, fibers.size() - fiber.warp * 32));
  if (lanes < 32) mask &= (1u << lanes) - 1;
  if (!(mask >> fiber.lane & 1)) {
    fail("%s: lane %u calls it but is not in the mask %08x (%s:%u)", name, fiber.lane, mask, place.file_name(), place.line());
  }
  fiber.input = input;
  fiber.output = output;
  fiber.mask = mask;
  fiber.operation = operation;
  fiber.name = name;
  fiber.place = place;
  fiber.state = State::kInWarp;
#if defined(SIMULATOR_TSAN)
  if (orders_memory) tsan_release(&warp_tags[fiber.warp]);
#endif
  bool complete = true;
  for (unsigned lane = 0; lane < lanes; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const Fiber& other = warp[lane];
    if (other.state == State::kDone) {
      fail("%s: lane %u of the mask %08x has exited (%s:%u)", name, lane, mask, place.file_name(), place.line());
    }
    if (other.state != State::kInWarp) {
      complete = false;
    } else if (other.operation != operation || other.mask != mask || other.place.line() != place.line()) {
      fail("divergent warp: lane %u is in %s at %s:%u, lane %u in %s at line %u", fiber.lane, name, place.file_name(),
           place.line(), lane, other.name, other.place.line());
    }
  }
  if (!complete) return to_scheduler();
  Lane* members[32] = {};
  for (unsigned lane = 0; lane < lanes; ++lane) {
    members[lane] = &warp[lane];
#if defined(SIMULATOR_TSAN)
    if (orders_memory && (mask >> lane & 1)) tsan_acquire_as(warp[lane], &warp_tags[fiber.warp]);
#endif
  }
#if defined(SIMULATOR_TSAN)
  if (orders_memory) tsan_switch(fiber.sanitizer_fiber);
#endif
  operation(members, mask);
  for (unsigned lane = 0; lane < lanes; ++lane) {
    if (mask >> lane & 1) warp[lane].state = State::kReady;
  }
}

void copy_async(void* target, const void* source, unsigned bytes, unsigned source_bytes) {
  if ((reinterpret_cast<uintptr_t>(target) | reinterpret_cast<uintptr_t>(source)) & (bytes - 1)) {
    fail("cp.async: an address is no multiple of %u", bytes);
  }
  Fiber& fiber = self();
  if (fiber.copy_count == kMaxCopies) fail("more than %u cp.async of one thread under way", kMaxCopies);
  poison_bytes(static_cast<char*>(target), bytes);
  fiber.copies[fiber.copy_count++] = {target, source, bytes, source_bytes, fiber.group};
}

void copy_commit() { ++self().group; }

void copy_wait(unsigned pending) {
  Fiber& fiber = self();
  unsigned left = 0;
  for (unsigned i = 0; i < fiber.copy_count; ++i) {
    const Copy copy = fiber.copies[i];
    if (copy.group + pending < fiber.group) {
      copy_bytes(static_cast<char*>(copy.target), static_cast<const char*>(copy.source), copy.bytes, copy.source_bytes);
    } else {
      fiber.copies[left++] = copy;
    }
  }
  fiber.copy_count = left;
}

void run(dim3 grid, dim3 size, size_t shared_bytes, Body chosen_body, void* argument) {
  const size_t count = static_cast<size_t>(size.x) * size.y * size.z;
  if (count == 0 || count > 1024) throw std::runtime_error("a block has 1 to 1024 threads");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) throw std::runtime_error("an empty grid");
  if (grid.y > 65535 || grid.z > 65535) throw std::runtime_error("a grid has at most 65535 blocks in y and in z");
  if (shared_bytes > kMaxShared) throw std::runtime_error("more than 48 KiB of dynamic shared memory");
  static char* stacks = nullptr;
  static size_t stack_count = 0;
  if (stack_count < count) {
    void* fresh = mmap(nullptr, count * kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (fresh == MAP_FAILED) throw std::runtime_error("no memory for the stacks of fibers");
    if (stacks != nullptr) munmap(stacks, stack_count * kStackBytes);
    stacks = static_cast<char*>(fresh);
    stack_count = count;
  }
  const size_t colon = order.find(':');
  std::mt19937 random(colon == std::string::npos ? 0u : static_cast<unsigned>(std::stoul(order.substr(colon + 1))));
  std::vector<unsigned> turns(count);
  for (size_t i = 0; i < count; ++i) turns[i] = static_cast<unsigned>(i);
  if (order == "reverse") std::reverse(turns.begin(), turns.end());
  body = chosen_body;
  body_argument = argument;
  message[0] = 0;
  fibers.resize(count);
  begin_launch();
  for (unsigned z = 0; z < grid.z && !*message; ++z) {
    for (unsigned y = 0; y < grid.y && !*message; ++y) {
      for (unsigned x = 0; x < grid.x && !*message; ++x) {
        shared = nullptr;
        if (shared_bytes > 0 && posix_memalign(&shared, 128, shared_bytes) != 0) abort();
        if (shared_bytes > 0) std::memset(shared, 0xff, shared_bytes);
        start_fibers({x, y, z}, grid, size, stacks);
        run_block(turns, random);
        end_block();
      }
    }
  }
  end_launch();
  if (*message) throw std::runtime_error(message);
}

}  // namespace simulator
