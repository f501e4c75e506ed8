// Each check is a function that adds what is wrong, with its place.
#include "schema.hpp"

#include <algorithm>
#include <cmath>
#include <memory>

#include "text.hpp"

namespace edgead {

namespace {

constexpr size_t MOST_KEPT = 4096;

// How Python shows a limit: 1, 0.05.
std::string shown(double value) {
    const auto whole = static_cast<int64_t>(value);
    return static_cast<double>(whole) == value ? std::to_string(whole) : general3(value);
}

bool wrong(Problems &problems, const std::string &what, bool newer = false) {
    problems.add(what, newer);
    return false;
}

// Check something one step further in.
template <typename Inner> bool at(Problems &problems, const std::string &step, Inner inner) {
    problems.where.push_back(step);
    const bool right = inner();
    problems.where.pop_back();
    return right;
}

bool check_text(const std::string &value, const TextRule &rule, Problems &problems) {
    std::vector<uint32_t> points;
    decode_utf8(value, points);
    if (rule.least && points.size() < rule.least)
        return wrong(problems, "String should have at least " + std::to_string(rule.least) + " character" +
                                   (rule.least == 1 ? "" : "s"));
    if (rule.most && points.size() > rule.most)
        return wrong(problems, "String should have at most " + std::to_string(rule.most) + " characters");
    const std::string found = rule.check ? rule.check(value) : "";
    return found.empty() || wrong(problems, found);
}

}  // namespace

void Problems::add(const std::string &what, bool newer) {
    count_++;
    // The first one and the first newer one are told, the others counted.
    const bool first_newer = newer && std::none_of(found.begin(), found.end(), [](const Problem &p) { return p.newer; });
    if (found.size() < MOST_KEPT || first_newer) found.push_back({where, what, newer});
}

Check whole(int64_t least, int64_t most) {
    return [=](const Value &value, Problems &problems) {
        if (!value.is_whole()) return wrong(problems, "Input should be a valid integer");
        const bool low = value.kind == Value::INT ? value.whole < least : value.number < 0;
        const bool high = value.kind == Value::INT ? value.whole > most : value.number > 0;
        if (low) return wrong(problems, "Input should be greater than or equal to " + std::to_string(least));
        if (high) return wrong(problems, "Input should be less than or equal to " + std::to_string(most));
        return true;
    };
}

Check number() { return number({-INFINITY, INFINITY}); }

Check number_at_least(double least, bool above) { return number({least, INFINITY, above}); }

Check number(Range range) {
    return [=](const Value &value, Problems &problems) {
        if (!value.is_number()) return wrong(problems, "Input should be a valid number");
        const double x = value.number;
        if (!std::isfinite(x)) return wrong(problems, "Input should be a finite number");
        if (range.above && !(x > range.least))
            return wrong(problems, "Input should be greater than " + shown(range.least));
        if (x < range.least) return wrong(problems, "Input should be greater than or equal to " + shown(range.least));
        if (range.below && !(x < range.most)) return wrong(problems, "Input should be less than " + shown(range.most));
        if (x > range.most) return wrong(problems, "Input should be less than or equal to " + shown(range.most));
        return true;
    };
}

Check truth() {
    return [](const Value &value, Problems &problems) {
        return value.kind == Value::BOOL || wrong(problems, "Input should be a valid boolean");
    };
}

Check text(TextRule rule) {
    return [=](const Value &value, Problems &problems) {
        if (value.kind != Value::TEXT) return wrong(problems, "Input should be a valid string");
        return check_text(value.text, rule, problems);
    };
}

Check pattern_sha256() {
    return text({0, 0, [](const std::string &value) {
                     const bool hex = value.size() == 64 && value.find_first_not_of("0123456789abcdef") == value.npos;
                     return std::string(hex ? "" : "String should match pattern '^[0-9a-f]{64}$'");
                 }});
}

Check one_of(std::vector<std::string> names, bool newer) {
    return [=](const Value &value, Problems &problems) {
        if (value.kind == Value::TEXT && std::find(names.begin(), names.end(), value.text) != names.end()) return true;
        std::string known;
        for (size_t i = 0; i < names.size(); i++) {
            if (i) known += i + 1 < names.size() ? ", " : " or ";
            known += "'" + names[i] + "'";
        }
        return wrong(problems, "Input should be " + known, newer);
    };
}

Check or_none(Check check) {
    return [=](const Value &value, Problems &problems) { return value.kind == Value::NONE || check(value, problems); };
}

Check anything() {
    return [](const Value &, Problems &) { return true; };
}

Check list_of(Check check) {
    return [=](const Value &value, Problems &problems) {
        if (value.kind != Value::LIST) return wrong(problems, "Input should be a valid array");
        bool right = true;
        for (size_t i = 0; i < value.items.size(); i++)
            right &= at(problems, std::to_string(i), [&] { return check(value.items[i], problems); });
        return right;
    };
}

Check dict_of(TextRule key, Check check, size_t least) {
    return [=](const Value &value, Problems &problems) {
        if (value.kind != Value::OBJECT) return wrong(problems, "Input should be an object");
        bool right = true;
        for (const auto &field : value.fields)
            right &= at(problems, field.first, [&] {
                const bool named = check_text(field.first, key, problems);
                return check(field.second, problems) && named;
            });
        if (right && value.fields.size() < least)
            return wrong(problems, "Dictionary should have at least " + std::to_string(least) +
                                       " item after validation, not " + std::to_string(value.fields.size()));
        return right;
    };
}

Check object(std::vector<Field> fields, Together together) {
    const auto shared = std::make_shared<const std::vector<Field>>(std::move(fields));
    return [=](const Value &value, Problems &problems) {
        if (value.kind != Value::OBJECT) return wrong(problems, "Input should be an object");
        bool right = true;
        for (const Field &field : *shared) {
            const Value *found = value.find(field.name);
            if (!found && !field.required) continue;
            right &= at(problems, field.name, [&] {
                return found ? field.check(*found, problems) : wrong(problems, "Field required");
            });
        }
        for (const auto &field : value.fields) {
            const bool known = std::any_of(shared->begin(), shared->end(),
                                           [&](const Field &one) { return field.first == one.name; });
            if (!known)
                right &= at(problems, field.first, [&] { return wrong(problems, "Extra inputs are not permitted", true); });
        }
        const std::string found = right && together ? together(value) : "";
        return right && (found.empty() || wrong(problems, found));
    };
}

}  // namespace edgead
