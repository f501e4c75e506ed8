// From raw scores to decisions, as verdict.py.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "edgead.h"
#include "manifest.hpp"
#include "network.hpp"

namespace edgead {

struct Verdict {
    double score, threshold;
    edgead_decision decision;
    std::optional<std::string> category, reason;
};

Verdict judge(const Limits &limits, const Inference &inference);

// How far the threshold lies from the median score of the parts of one category that are OK: the scale of differences.
double score_margin(const std::vector<Verdict> &verdicts, double threshold);

const char *decision_name(edgead_decision decision);

}  // namespace edgead
