// One graph in a library that executes it; the libraries are one file each.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace edgead {

// What a run gives. The data live as long as it does.
struct Tensor {
    std::shared_ptr<const void> owner;
    std::vector<int64_t> shape;
    bool is_float = false;
    const float *data = nullptr;

    std::string describe() const;  // "(1, 28, 28)"
};

// One input of a run: bytes of a picture, or float32.
struct Feed {
    std::string name;
    const void *data;
    std::vector<int64_t> shape;
    bool is_float;

    size_t bytes() const;
};

class Session {
  public:
    virtual ~Session() = default;
    virtual const std::vector<std::string> &inputs() const = 0;
    virtual const std::vector<std::string> &outputs() const = 0;
    virtual const std::vector<int64_t> &input_shape() const = 0;  // of the first one, -1 where it is open
    virtual std::vector<int64_t> output_shape(const std::string &name) const = 0;

    // Raises a Failure with the first line of what the library says.
    virtual std::vector<Tensor> run(const std::vector<Feed> &feeds, const std::vector<std::string> &outputs) const = 0;
};

// How a graph is opened. after_native: it is the second part of one, behind native code.
struct SessionOptions {
    std::optional<int> threads;  // none leaves the number to the library
    bool after_native = false;
};

// A library that was loaded.
class Backend {
  public:
    virtual ~Backend() = default;
    virtual std::string name() const = 0;
    virtual std::string version() const = 0;
    virtual std::string provider() const = 0;
    virtual std::unique_ptr<Session> open(const std::string &folder, const std::string &file, SessionOptions options) const = 0;
};

// Load ONNX Runtime or OpenVINO, once a process; path: of the library, "" for what the system finds. Raises a Failure.
const Backend &load_onnxruntime(const std::string &path);
const Backend &load_openvino(const std::string &path);

// The line of a library's message that says what happened, at most 300 characters.
std::string first_line(const std::string &message);

}  // namespace edgead
