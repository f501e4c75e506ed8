// An opened bundle that judges frames, and replays its references, as inspector.py and replay.py.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "decision.hpp"
#include "edgead.h"
#include "network.hpp"
#include "sight.hpp"

namespace edgead {

struct Judged {
    Verdict verdict;
    std::vector<float> map;  // empty: none
    int height = 0, width = 0;
    double preprocess_ms = 0.0, network_ms = 0.0, decide_ms = 0.0;
};

struct Checked {
    int references = 0;
    double worst = 0.0, worst_map = 0.0;
    std::string problem;  // the first thing that is wrong, "" where this device decides as the model was validated
};

struct OpenOptions {
    std::string precision;
    std::optional<int> threads;
    bool native;
    std::string backend, library;
    std::string trust;  // "": the file that $EDGEAD_TRUST names, where it does
};

class Inspector {
  public:
    Inspector(const std::string &path, const OpenOptions &options);

    Judged inspect(const Frame &frame);
    Checked check();
    std::string describe() const;
    const Sight &sight() const { return *sight_; }
    edgead_shape shape() const;
    // The process that opened it; a forked one has none of its threads.
    bool is_here() const;

    std::mutex turn;  // of who uses it

  private:
    std::string path_, sha256_, precision_;
    std::optional<Manifest> manifest_;
    std::unique_ptr<Sight> sight_;
    const Backend *backend_;
    std::unique_ptr<Network> network_;
    Limits limits_;
    std::vector<uint8_t> picture_;
    int64_t process_;
};

}  // namespace edgead
