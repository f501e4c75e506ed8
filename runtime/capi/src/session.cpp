// What all libraries' sessions share.
#include "session.hpp"

#include <algorithm>

#include "text.hpp"

namespace edgead {

std::string Tensor::describe() const {
    std::string out = "(";
    for (size_t i = 0; i < shape.size(); i++) out += (i ? ", " : "") + std::to_string(shape[i]);
    return out + (shape.size() == 1 ? ",)" : ")");
}

size_t Feed::bytes() const {
    size_t count = is_float ? sizeof(float) : 1;
    for (int64_t size : shape) count *= static_cast<size_t>(size);
    return count;
}

std::string first_line(const std::string &message) {
    std::string first;
    for (size_t start = 0; start < message.size();) {
        const size_t end = std::min(message.find('\n', start), message.size());
        const std::string line = one_line(message.substr(start, end - start));
        // OpenVINO opens with the places in its source through which the error came.
        if (!line.empty() && line.compare(0, 15, "Exception from ") != 0) return line;
        if (first.empty()) first = line;
        start = end + 1;
    }
    return first.empty() ? "no reason given" : first;
}

}  // namespace edgead
