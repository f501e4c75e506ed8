// One graph in ONNX Runtime, opened as onnxruntime_backend.py opens it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ort_api.hpp"

namespace edgead {

// Load ONNX Runtime, once a process; path: of the library, "" for what the system finds. Raises a Failure.
void load_onnxruntime(const std::string &path);

// Its version, such as "1.31.1".
std::string onnxruntime_version();

// What a run gives.
class Tensor {
  public:
    explicit Tensor(ort::Value *value);
    const std::vector<int64_t> &shape() const { return shape_; }
    bool is_float() const { return type_ == ort::FLOAT; }
    const float *data() const { return data_; }
    ort::Value *value() const { return value_.get(); }
    std::string describe() const;  // "(1, 28, 28)"

  private:
    std::shared_ptr<ort::Value> value_;
    std::vector<int64_t> shape_;
    int type_ = 0;
    const float *data_ = nullptr;
};

// One input of a run: somebody's data, or what another run gave.
struct Feed {
    std::string name;
    const void *data;  // nullptr: `from`
    size_t bytes;
    std::vector<int64_t> shape;
    int type;
    const Tensor *from;
};

class Session {
  public:
    // threads: none leaves the number to the library.
    Session(const std::string &folder, const std::string &file, std::optional<int> threads);
    ~Session();
    Session(const Session &) = delete;
    Session &operator=(const Session &) = delete;

    const std::vector<std::string> &inputs() const { return inputs_; }
    const std::vector<std::string> &outputs() const { return outputs_; }
    const std::vector<int64_t> &input_shape() const { return input_shape_; }  // of the first one, -1 where it is open
    std::vector<int64_t> output_shape(const std::string &name) const;

    // Raises a Failure with the first line of what the library says.
    std::vector<Tensor> run(const std::vector<Feed> &feeds, const std::vector<std::string> &outputs) const;

  private:
    ort::Session *session_ = nullptr;
    std::vector<std::string> inputs_, outputs_;
    std::vector<int64_t> input_shape_;
};

}  // namespace edgead
