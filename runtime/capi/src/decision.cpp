// Scores compared with the thresholds of their category.
#include "decision.hpp"

#include <algorithm>
#include <cmath>

namespace edgead {

Verdict judge(const Limits &limits, const Inference &inference) {
    const double score = inference.score;
    double threshold = limits.value;
    if (inference.category) {
        const auto own = limits.categories.find(*inference.category);
        if (own != limits.categories.end()) threshold = own->second;
    }
    if (inference.reason) return {score, threshold, EDGEAD_NOT_INSPECTED, inference.category, inference.reason};
    if (!std::isfinite(score)) return {score, threshold, EDGEAD_NOT_INSPECTED, inference.category, "non-finite score"};
    return {score, threshold, score > threshold ? EDGEAD_ANOMALY : EDGEAD_OK_PART, inference.category, std::nullopt};
}

double score_margin(const std::vector<Verdict> &verdicts, double threshold) {
    std::vector<double> scores, all;
    for (const Verdict &one : verdicts) {
        all.push_back(one.score);
        if (one.decision == EDGEAD_OK_PART) scores.push_back(one.score);
    }
    if (scores.empty()) scores = all;
    std::sort(scores.begin(), scores.end());
    const size_t half = scores.size() / 2;
    const double median = scores.size() % 2 ? scores[half] : (scores[half - 1] + scores[half]) / 2;
    return std::fabs(threshold - median);
}

const char *decision_name(edgead_decision decision) {
    return decision == EDGEAD_OK_PART ? "OK" : decision == EDGEAD_ANOMALY ? "ANOMALY" : "NOT_INSPECTED";
}

}  // namespace edgead
