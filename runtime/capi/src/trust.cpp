// Trust files read with limits, in the words of the Python runtime (pydantic's); the clock is the machine's, in UTC.
#include "trust.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <set>

#include "ed25519.hpp"
#include "failure.hpp"
#include "file.hpp"
#include "manifest_schema.hpp"
#include "text.hpp"

namespace edgead {

namespace {

constexpr size_t MAX_BYTES = 1 << 20, MAX_KEYS = 1000;

bool wrong(Problems &problems, const std::string &what) {
    problems.add(what);
    return false;
}

TextCheck told(TextCheck check) {
    return [=](const std::string &value) {
        const std::string found = check(value);
        return found.empty() ? found : "Value error, " + found;
    };
}

std::string time_problem(const std::string &text) {
    if (parse_time(text)) return "";
    return repr(head(text, 40)) + " is no time; write 2026-01-31 or 2026-01-31T12:00:00Z (UTC)";
}

Check model(const char *name, std::vector<Field> fields) {
    return [=, inner = object(std::move(fields))](const Value &value, Problems &problems) {
        if (value.kind == Value::OBJECT) return inner(value, problems);
        return wrong(problems, std::string("Input should be a valid dictionary or instance of ") + name);
    };
}

std::string repeated(const std::vector<Value> &keys) {
    for (const char *kind : {"public_key", "name"}) {
        std::set<std::string> found;
        for (const Value &key : keys)
            if (!found.insert(key.find(kind)->text).second) return std::string("Value error, a ") + kind + " is there twice";
    }
    return "";
}

Check keys_check() {
    const Check time = or_none(text({0, 0, told(time_problem)}));
    const Check key = model("TrustedKey", {{"name", text({1, 200, told(printable)})},
                                           {"algorithm", one_of({"ed25519"}), false},
                                           {"public_key", pattern_sha256()},
                                           {"valid_from", time, false},
                                           {"valid_until", time, false}});
    return [inner = list_of(key)](const Value &value, Problems &problems) {
        if (value.kind != Value::LIST) return wrong(problems, "Input should be a valid tuple");
        if (!inner(value, problems)) return false;
        const size_t count = value.items.size();
        if (!count) return wrong(problems, "Value should have at least 1 item after validation, not 0");
        if (count > MAX_KEYS)
            return wrong(problems, "Value should have at most 1000 items after validation, not " + std::to_string(count));
        const std::string twice = repeated(value.items);
        return twice.empty() || wrong(problems, twice);
    };
}

const Check &trust_check() {
    static const Check one = model("TrustFile", {{"format", one_of({"edgead.trust/1"})}, {"keys", keys_check()}});
    return one;
}

[[noreturn]] void unreadable(const std::string &path, const std::string &why) {
    fail(EDGEAD_TRUST_FILE, "cannot read the trust file " + path + ": " + why);
}

[[noreturn]] void no_trust(const std::string &path, const std::string &why) {
    fail(EDGEAD_TRUST_FILE, path + " is no trust file (" + one_line(why) + "); edgead keygen --add-to writes one");
}

std::optional<std::string> text_of(const Value &object, const char *name) {
    const Value *found = object.find(name);
    return found && found->kind == Value::TEXT ? std::optional<std::string>(found->text) : std::nullopt;
}

// Days from 1970-01-01 of a date of the Gregorian calendar, from year 1 on.
int64_t days_of(int64_t year, int64_t month, int64_t day) {
    const int64_t shifted = month > 2 ? year : year - 1, months = (month + 9) % 12;  // years that begin in March
    return 365 * shifted + shifted / 4 - shifted / 100 + shifted / 400 + (153 * months + 2) / 5 + day - 1 - 719468;
}

int days_in(int year, int month) {
    const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    const bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    return days[month - 1] + (month == 2 && leap);
}

std::string shown(int64_t seconds) {
    const auto now = static_cast<time_t>(seconds);
    struct tm parts {};
    char buffer[80] = "";
    if (gmtime_r(&now, &parts)) strftime(buffer, sizeof buffer, "%Y-%m-%dT%H:%M:%SZ", &parts);
    return buffer;
}

}  // namespace

std::optional<int64_t> parse_time(const std::string &text) {
    const std::string form = "0000-00-00T00:00:00Z";
    if (text.size() != 10 && text.size() != form.size()) return std::nullopt;
    for (size_t i = 0; i < text.size(); i++) {
        const bool digit = text[i] >= '0' && text[i] <= '9';
        if (form[i] == '0' ? !digit : text[i] != form[i]) return std::nullopt;
    }
    const auto number = [&](size_t at, size_t digits) { return at < text.size() ? std::stoi(text.substr(at, digits)) : 0; };
    const int year = number(0, 4), month = number(5, 2), day = number(8, 2);
    const int hour = number(11, 2), minute = number(14, 2), second = number(17, 2);
    if (year < 1 || month < 1 || month > 12 || day < 1 || day > days_in(year, month)) return std::nullopt;
    if (hour > 23 || minute > 59 || second > 59) return std::nullopt;
    return days_of(year, month, day) * 86400 + hour * 3600 + minute * 60 + second;
}

std::string TrustedKey::period_problem(int64_t now) const {
    const std::string clock = "the clock of this machine says " + shown(now);
    // What is no time here was refused when the file was read.
    if (valid_from && now < parse_time(*valid_from).value()) return "is valid only from " + *valid_from + ", and " + clock;
    if (valid_until && now >= parse_time(*valid_until).value()) return "was valid until " + *valid_until + ", and " + clock;
    return "";
}

void TrustFile::require(const std::string &manifest, const std::optional<SignatureFile> &signature, const Where &where) const {
    const auto refuse = [](const std::string &why) { fail(EDGEAD_BUNDLE_UNTRUSTED, why); };
    const std::string &label = where.bundle;
    const std::string sign = "; sign it with a key of " + where.trust + ": edgead sign " + label + " --key FILE";
    if (!signature) refuse(label + " is not signed, and " + where.trust + " asks for a signature" + sign);
    struct timespec clock {};
    if (clock_gettime(CLOCK_REALTIME, &clock)) fail(EDGEAD_INTERNAL, "the clock of this machine cannot be read");
    std::string problem;
    for (const Signature &one : *signature) {
        const auto key = std::find_if(keys_.begin(), keys_.end(),
                                      [&](const TrustedKey &known) { return key_id(known.public_key) == one.key_id; });
        if (key == keys_.end()) continue;
        if (!signature_holds(key->public_key, one.signature, signed_message(manifest)))
            refuse(label + " bears a signature of '" + key->name + "' that does not belong to its content: it was altered; take it "
                                                                   "again from where it comes");
        const std::string found = key->period_problem(static_cast<int64_t>(clock.tv_sec));
        if (found.empty()) return;
        if (problem.empty()) problem = "its key '" + key->name + "' " + found;
    }
    if (!problem.empty()) refuse(label + " is signed, but " + problem + sign);
    refuse(label + " is signed by nobody whom " + where.trust + " knows" + sign);
}

TrustFile parse_trust(const std::string &data, const std::string &path) {
    if (data.size() > MAX_BYTES) no_trust(path, "it is too large");
    Value content;
    std::string problem;
    // Editors write a byte-order mark, and Python takes it.
    const bool marked = data.compare(0, 3, "\xEF\xBB\xBF") == 0;
    if (!parse_json(marked ? data.substr(3) : data, content, problem)) no_trust(path, problem);
    Problems problems;
    if (!trust_check()(content, problems)) {
        std::string place;
        for (const auto &step : problems.found.front().where) place += (place.empty() ? "" : ".") + step;
        fail(EDGEAD_TRUST_FILE, path + " is no trust file (" + one_line(place + ": " + problems.found.front().what) +
                                    "); see docs/bundle.md");
    }
    std::vector<TrustedKey> keys;
    for (const Value &one : content.find("keys")->items)
        keys.push_back({one.find("name")->text, from_hex(one.find("public_key")->text), text_of(one, "valid_from"),
                        text_of(one, "valid_until")});
    return TrustFile(std::move(keys));
}

TrustFile read_trust(const std::string &path) {
    // Without waiting: a pipe that nobody writes to would hold the camera loop.
    const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) unreadable(path, system_reason(errno));
    const std::unique_ptr<const int, void (*)(const int *)> closing(&descriptor, [](const int *one) { close(*one); });
    struct stat status {};
    if (fstat(descriptor, &status)) unreadable(path, system_reason(errno));
    if (!S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode)) unreadable(path, "it is no plain file");
    std::string data(MAX_BYTES + 1, '\0');
    size_t size = 0;
    while (size < data.size()) {
        const ssize_t got = read(descriptor, data.data() + size, data.size() - size);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) unreadable(path, system_reason(errno));
        if (got == 0) break;
        size += static_cast<size_t>(got);
    }
    data.resize(size);
    return parse_trust(data, path);
}

std::optional<std::string> asked_trust(const std::string &asked) {
    if (!asked.empty()) return asked;
    const char *chosen = std::getenv("EDGEAD_TRUST");
    return chosen && *chosen ? std::optional<std::string>(chosen) : std::nullopt;
}

}  // namespace edgead
