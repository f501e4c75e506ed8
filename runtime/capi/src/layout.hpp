// Names of a bundle's members: safe to extract on Linux, Windows and macOS, as layout.py.
#pragma once

#include <string>
#include <string_view>

namespace edgead {

inline const char *const MANIFEST_NAME = "manifest.json";
inline const char *const SIGNATURE_NAME = "signature.ed25519";
inline const char *const MASK_NAME = "mask.png";
inline const char *const TEMPLATE_NAME = "template.png";
inline const char *const EXPECTED_NAME = "references/expected.npz";
inline const char *const WEIGHTS = "weights/";
inline const char *const REFERENCES = "references/";

// What is wrong with a member's name, "" where nothing is.
std::string member_name_problem(std::string_view name);

// Whether a name holds only letters of which it is known what they become where case is ignored.
bool takes_letters(std::string_view name);

// The form in which two names collide on a file system that ignores case, of a name that `takes_letters`.
std::string fold_name(std::string_view name);

bool starts_with(std::string_view text, std::string_view start);
bool ends_with(std::string_view text, std::string_view end);

// The name of a head's graph file.
std::string head_file(const std::string &category, const std::string &precision);

// Names of a graph file's parts, and of what describes what is between them.
struct NativeFiles {
    std::string queries, score, description;
};
NativeFiles native_files(const std::string &graph);

}  // namespace edgead
