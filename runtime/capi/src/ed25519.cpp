// The functions are found by their names; their types are those of openssl/evp.h and err.h, the same in 1.1.1 and 3.
#include "ed25519.hpp"

#include <dlfcn.h>

#include <memory>
#include <mutex>
#include <type_traits>

#include "failure.hpp"
#include "text.hpp"

namespace edgead {

namespace {

constexpr int ED25519 = 1087;  // EVP_PKEY_ED25519
constexpr size_t KEY_BYTES = 32, SIGNATURE_BYTES = 64;

#define EDGEAD_CRYPTO_FUNCTIONS(FUNCTION)                                                                     \
    FUNCTION(EVP_PKEY_new_raw_public_key, void *(*)(int, void *, const unsigned char *, size_t))              \
    FUNCTION(EVP_PKEY_free, void (*)(void *))                                                                 \
    FUNCTION(EVP_MD_CTX_new, void *(*)())                                                                     \
    FUNCTION(EVP_MD_CTX_free, void (*)(void *))                                                               \
    FUNCTION(EVP_DigestVerifyInit, int (*)(void *, void **, const void *, void *, void *))                    \
    FUNCTION(EVP_DigestVerify, int (*)(void *, const unsigned char *, size_t, const unsigned char *, size_t)) \
    FUNCTION(ERR_set_mark, int (*)())                                                                         \
    FUNCTION(ERR_pop_to_mark, int (*)())

struct Crypto {
#define EDGEAD_CRYPTO_MEMBER(name, ...) std::decay_t<decltype(static_cast<__VA_ARGS__>(nullptr))> name = nullptr;
    EDGEAD_CRYPTO_FUNCTIONS(EDGEAD_CRYPTO_MEMBER)
#undef EDGEAD_CRYPTO_MEMBER
};

[[noreturn]] void unavailable(const std::string &what) {
    fail(EDGEAD_CRYPTO_UNAVAILABLE, "a signature needs libcrypto, and " + what +
                                        "; install OpenSSL 3 or 1.1.1: apt-get install openssl");
}

// Never unloaded: libcrypto cleans up when the process ends. Where it is missing, the next call looks again.
const Crypto &crypto() {
    static std::mutex loading;
    static const Crypto *loaded = nullptr;
    const std::lock_guard<std::mutex> guard(loading);
    if (loaded) return *loaded;
    void *library = nullptr;
    std::string reason;
    for (const char *name : {"libcrypto.so.3", "libcrypto.so.1.1"}) {
        library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
        if (library) break;
        const char *why = dlerror();
        if (reason.empty()) reason = one_line(why ? why : name);
    }
    if (!library) unavailable("it cannot be loaded (" + reason + ")");
    auto made = std::make_unique<Crypto>();
    const char *missing = nullptr;
#define EDGEAD_CRYPTO_FIND(name, ...)                                        \
    made->name = reinterpret_cast<decltype(made->name)>(dlsym(library, #name)); \
    if (!made->name && !missing) missing = #name;
    EDGEAD_CRYPTO_FUNCTIONS(EDGEAD_CRYPTO_FIND)
#undef EDGEAD_CRYPTO_FIND
    if (missing) {
        dlclose(library);
        unavailable(std::string("the one of this system has no ") + missing);
    }
    loaded = made.release();
    return *loaded;
}

}  // namespace

bool signature_holds(const std::vector<uint8_t> &key, const std::vector<uint8_t> &signature, const std::string &message) {
    if (key.size() != KEY_BYTES || signature.size() != SIGNATURE_BYTES) return false;
    const Crypto &with = crypto();
    // The queue of errors is the thread's, and may be read by the program's own use of OpenSSL.
    with.ERR_set_mark();
    int found = -1;
    {
        const std::unique_ptr<void, void (*)(void *)> context(with.EVP_MD_CTX_new(), with.EVP_MD_CTX_free);
        const std::unique_ptr<void, void (*)(void *)> public_key(
            with.EVP_PKEY_new_raw_public_key(ED25519, nullptr, key.data(), key.size()), with.EVP_PKEY_free);
        if (context && public_key && with.EVP_DigestVerifyInit(context.get(), nullptr, nullptr, nullptr, public_key.get()) == 1)
            found = with.EVP_DigestVerify(context.get(), signature.data(), signature.size(),
                                          reinterpret_cast<const unsigned char *>(message.data()), message.size());
    }
    with.ERR_pop_to_mark();
    // 0 alone says that the signature is wrong; the others that nothing was verified, such as where a policy forbids Ed25519.
    if (found != 0 && found != 1) unavailable("the one of this system cannot verify Ed25519");
    return found == 1;
}

}  // namespace edgead
