// A bundle's graphs as one network: single, in tiles, routed with heads, or routed in one graph.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "manifest.hpp"
#include "native.hpp"
#include "session.hpp"

namespace edgead {

// Raw output for one picture; higher is more anomalous. A routed model says which category it took the part for, and why
// it is not sure enough to judge.
struct Inference {
    float score = 0.0f;
    std::vector<float> map;
    int height = 0, width = 0;
    std::optional<std::string> category, reason;
};

struct GraphOptions {
    std::optional<int> threads;
    bool native;
};

// One graph; where it is there in two parts, what is between them is computed natively.
class Graph {
  public:
    Graph(const Backend &backend, const Bundle &bundle, const std::string &folder, const std::string &file,
          const std::vector<std::string> &outputs, GraphOptions options);

    // The outputs for one image (height, width, 3), whose first axis is checked: the first entry is this image's.
    std::vector<Tensor> run(const uint8_t *image);
    int height() const { return height_; }
    int width() const { return width_; }
    std::string provider() const;

  private:
    void check(const std::string &file, const std::vector<std::string> &wanted);
    void open_native(const Backend &backend, const Bundle &bundle, const std::string &folder, const std::string &file, std::optional<int> threads);

    std::string provider_;
    std::vector<std::string> outputs_, carried_;
    std::unique_ptr<Session> first_, second_;
    std::unique_ptr<NativeCode> native_;
    bool channels_first_ = false;
    int height_ = 0, width_ = 0, batch_ = 1;
    std::vector<uint8_t> filled_;
};

class Network {
  public:
    virtual ~Network() = default;
    // Judge one picture as the network gets it.
    virtual Inference run(const uint8_t *image) = 0;
    virtual std::string provider() const = 0;
};

struct NetworkOptions {
    std::string precision;
    GraphOptions graph;
};

// Open the graph files of a bundle; raises a Failure.
std::unique_ptr<Network> open_network(const Backend &backend, const Bundle &bundle, const NetworkOptions &options);

}  // namespace edgead
