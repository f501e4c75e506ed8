// The bytes that cp.async moves. Compiled with the sanitizers of the kernels, which must see these reads and writes.
namespace simulator {

// Between the order to copy and the wait that covers it, what lies in the target is anybody's guess: here it is NaN.
void poison_bytes(char* target, unsigned bytes) {
  for (unsigned i = 0; i < bytes; ++i) target[i] = static_cast<char>(0xff);
}

void copy_bytes(char* target, const char* source, unsigned bytes, unsigned source_bytes) {
  for (unsigned i = 0; i < bytes; ++i) target[i] = i < source_bytes ? source[i] : 0;
}

}  // namespace simulator
