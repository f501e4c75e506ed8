// What of a bundle is read as untrusted input, for libFuzzer: `clang++ -fsanitize=fuzzer,address,undefined`.
//
// The first byte chooses: a whole bundle, its manifest, a PNG, the expected results, an aligned part's template, a
// signature member, a trust file, or both of these with a manifest. With FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION digests
// and checksums are computed and not compared, or no input would get by them.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "failure.hpp"
#include "npz.hpp"
#include "png.hpp"
#include "references.hpp"
#include "sight.hpp"
#include "trust.hpp"

using namespace edgead;

namespace {

void read_bundle(const uint8_t *data, size_t size) {
    static const int file = memfd_create("bundle", 0);
    if (ftruncate(file, 0) || pwrite(file, data, size, 0) != static_cast<ssize_t>(size)) return;
    const Bundle bundle("/proc/self/fd/" + std::to_string(file), std::nullopt);
    for (const auto &one : bundle.manifest().members) (void)bundle.read(one.first);
    const Sight sight(bundle);
    (void)read_expected(bundle);
    for (const auto &one : bundle.manifest().precisions) (void)find_limits(bundle.manifest(), one.first);
}

void align(const std::vector<uint8_t> &png) {
    const Alignment alignment({40, 30, 20, 15, 0, 0, 20, 15, 500, true}, png);
    const Picture picture(40, 30, 3);
    std::vector<uint8_t> out(8 * 8 * 3);
    (void)alignment.prepare(picture.view(), false, 8, 8, out.data());
}

// Before the first 0 a trust file, behind it a signature member.
void verify(const std::string &data) {
    const size_t end = std::min(data.find('\0'), data.size());
    const TrustFile trust = parse_trust(data.substr(0, end), "trust");
    trust.require("{}", parse_signature(data.substr(std::min(end + 1, data.size())), "fuzz"), {"trust", "fuzz"});
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!size) return 0;
    const uint8_t what = data[0] % 8;
    const std::vector<uint8_t> rest(data + 1, data + size);
    try {
        if (what == 0) read_bundle(rest.data(), rest.size());
        if (what == 1) (void)parse_manifest(std::string(rest.begin(), rest.end()), "fuzz");
        if (what == 2) (void)decode_png(rest, "fuzz");
        if (what == 4) align(rest);
        const std::string text(rest.begin(), rest.end());
        if (what == 5) (void)parse_signature(text, "fuzz");
        if (what == 6) (void)parse_trust(text, "fuzz");
        if (what == 7) verify(text);
        std::map<std::string, Array> arrays;
        std::string problem;
        if (what == 3) (void)read_npz(rest, arrays, problem);
    } catch (const Failure &) {
        // Refused, which is right.
    }
    return 0;
}
