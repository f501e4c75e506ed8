// Values built of what nlohmann/json reads, event by event.
#include "json_value.hpp"

#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "text.hpp"

namespace edgead {

namespace {

using Library = nlohmann::json;

// Deeper ones are refused by the Python runtime too; to destroy a value recurses as deep as it is.
constexpr size_t MOST_LEVELS = 190;

// Builds values of what the library reads; returning false ends it.
class Builder : public nlohmann::json_sax<Library> {
  public:
    explicit Builder(Value &root) : root_(root) {}

    bool null() override { return put(Value()); }
    bool boolean(bool value) override {
        Value made;
        made.kind = Value::BOOL, made.truth = value;
        return put(std::move(made));
    }
    bool number_integer(number_integer_t value) override {
        Value made;
        made.kind = Value::INT, made.whole = value, made.number = static_cast<double>(value);
        return put(std::move(made));
    }
    bool number_unsigned(number_unsigned_t value) override {
        if (value <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
            return number_integer(static_cast<int64_t>(value));
        return number_float(static_cast<double>(value), std::to_string(value));
    }
    bool number_float(number_float_t value, const string_t &digits) override {
        Value made;
        made.kind = digits.find_first_of(".eE") == digits.npos ? Value::BIG : Value::FLOAT;
        made.number = value, made.text = digits;
        return put(std::move(made));
    }
    bool string(string_t &text) override {
        Value made;
        made.kind = Value::TEXT, made.text = std::move(text);
        return put(std::move(made));
    }
    bool binary(binary_t &) override { return false; }
    bool start_object(std::size_t) override { return open(Value::OBJECT); }
    bool start_array(std::size_t) override { return open(Value::LIST); }
    bool end_object() override { return close(); }
    bool end_array() override { return close(); }
    bool key(string_t &name) override {
        if (!keys_.back().insert(name).second) return stop("a key appears twice");
        open_.back()->fields.emplace_back(name, Value());
        return true;
    }
    bool parse_error(std::size_t, const std::string &, const nlohmann::detail::exception &error) override {
        const std::string text = error.what();
        const size_t at = text.find("] ");
        return stop(at == text.npos ? text : text.substr(at + 2));
    }

    std::string problem;

  private:
    bool stop(const std::string &why) {
        problem = why;
        return false;
    }
    Value &place() {
        if (open_.empty()) return root_;
        if (open_.back()->kind == Value::OBJECT) return open_.back()->fields.back().second;
        open_.back()->items.emplace_back();
        return open_.back()->items.back();
    }
    bool put(Value &&value) {
        place() = std::move(value);
        return true;
    }
    // What lies further out is not moved while something in it is open, so its address stays.
    bool open(Value::Kind kind) {
        if (open_.size() >= MOST_LEVELS) return stop("maximum recursion depth exceeded");
        Value &made = place();
        made.kind = kind;
        open_.push_back(&made);
        keys_.emplace_back();
        return true;
    }
    bool close() {
        open_.pop_back();
        keys_.pop_back();
        return true;
    }

    Value &root_;
    std::vector<Value *> open_;
    std::vector<std::set<std::string>> keys_;
};

}  // namespace

const Value *Value::find(std::string_view key) const {
    for (const auto &field : fields)
        if (field.first == key) return &field.second;
    return nullptr;
}

bool parse_json(const std::string &data, Value &value, std::string &problem) {
    if (data.compare(0, 3, "\xEF\xBB\xBF") == 0) {
        problem = "Unexpected UTF-8 BOM";
        return false;
    }
    Builder builder(value);
    if (Library::sax_parse(data, &builder)) return true;
    problem = builder.problem.empty() ? "it cannot be read" : builder.problem;
    // The library shows the bytes at which it stopped, and a line for people is UTF-8.
    std::vector<uint32_t> points;
    if (!decode_utf8(problem, points)) problem = "it is no UTF-8";
    return false;
}

}  // namespace edgead
