// Rows turned, rounded and packed for knn.c; how many coordinates are compared first is tried out.
#include "knn_bank.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "linear.hpp"

namespace edgead {

namespace {

constexpr int FEWEST_TURNED = 32, MOST_AXES = 256, FINE_LEVEL = 127, BLOCK = 4096, FILLING = 1 << 30;
constexpr float LEAST_STEP = 1e-30f;  // of a bank whose rows are all the same
// Rows that stand for queries, and for the bank, where the number of coarse coordinates is chosen; fewer than in Python,
// which has a faster matrix product at hand.
constexpr int ASKED = 48, ASKED_AMONG = 8192;
constexpr float SLACK = 2.0f;
constexpr double EXACT = 2.0, TURN = 1.0 / 1000.0;

using Doubles = std::vector<double>;

int up(int count, int multiple) { return (count + multiple - 1) / multiple * multiple; }
size_t z(int count) { return static_cast<size_t>(count); }

// Rows and the axes along which they are looked at, none for the channels as they are.
struct Space {
    const float *rows;
    int count, width, channels;
    std::vector<float> center;
    Doubles axes;  // (width, turned)
    int turned;
    bool shortened = false;

    bool plain() const { return axes.empty(); }
    void make_plain() { axes.clear(), turned = width, shortened = false; }

    // Coordinates (n, turned) of some rows.
    Doubles coordinates(int start, int n, int step = 1) const {
        Doubles values(z(n) * z(width));
        for (int i = 0; i < n; i++)
            for (int c = 0; c < width; c++)
                values[z(i) * z(width) + z(c)] =
                    static_cast<double>(rows[(z(start) + z(i) * z(step)) * z(width) + z(c)]) - static_cast<double>(center[z(c)]);
        if (plain()) return values;
        Doubles found(z(n) * z(turned));
        multiply(values.data(), axes.data(), found.data(), n, width, turned);
        for (int i = 0; shortened && i < n; i++) {
            double rest = 0.0;
            for (int c = 0; c < width; c++) rest += values[z(i) * z(width) + z(c)] * values[z(i) * z(width) + z(c)];
            double *row = found.data() + z(i) * z(turned);
            for (int k = 0; k < turned - 1; k++) rest -= row[k] * row[k];
            row[turned - 1] = std::sqrt(std::max(rest, 0.0));
        }
        return found;
    }
};

std::vector<float> middle_of(const float *rows, int count, int width) {
    Doubles sums(z(width));
    for (int i = 0; i < count; i++)
        for (int c = 0; c < width; c++) sums[z(c)] += static_cast<double>(rows[z(i) * z(width) + z(c)]);
    std::vector<float> center(z(width));
    for (int c = 0; c < width; c++) center[z(c)] = static_cast<float>(sums[z(c)] / count);
    return center;
}

Space find_space(const float *rows, int count, int width, int channels) {
    Space space{rows, count, width, channels, middle_of(rows, count, width), {}, width};
    if (channels < FEWEST_TURNED) return space;
    const int step = (count + BLOCK - 1) / BLOCK, n = (count + step - 1) / step;
    const Doubles sample = space.coordinates(0, n, step);
    if (!std::all_of(sample.begin(), sample.end(), [](double x) { return std::isfinite(x); }))
        throw std::invalid_argument("rows that are not finite");
    Doubles flipped(sample.size()), moments(z(width) * z(width));
    for (int i = 0; i < n; i++)
        for (int c = 0; c < width; c++) flipped[z(c) * z(n) + z(i)] = sample[z(i) * z(width) + z(c)];
    multiply(flipped.data(), sample.data(), moments.data(), width, n, width);
    if (!eigenvectors(moments, width)) return space;
    // A multiple of 32 is compared fastest: what there is too little of is filled up with zeros.
    space.turned = std::min(up(width, 32), MOST_AXES);
    space.axes.assign(z(width) * z(space.turned), 0.0);
    space.shortened = space.turned < width;
    const int kept = std::min(space.turned - (space.shortened ? 1 : 0), width);
    for (int c = 0; c < width; c++)
        for (int k = 0; k < kept; k++)
            space.axes[z(c) * z(space.turned) + z(k)] = moments[z(c) * z(width) + z(width - 1 - k)];
    return space;
}

// The number of coarse coordinates that promises the least time, tried on rows in place of queries.
int choose_coarse(const Space &space, const InstructionSet &form) {
    if (space.plain()) return space.turned;
    const int step = (space.count + ASKED_AMONG - 1) / ASKED_AMONG, n = (space.count + step - 1) / step, turned = space.turned;
    std::vector<float> rows(z(n) * z(turned));
    for (int start = 0; start < n; start += BLOCK / 4) {
        const int some = std::min(BLOCK / 4, n - start);
        const Doubles part = space.coordinates(start * step, some, step);
        std::transform(part.begin(), part.end(), rows.begin() + static_cast<ptrdiff_t>(z(start) * z(turned)),
                       [](double x) { return static_cast<float>(x); });
    }
    // Remaining lengths at each count that is tried, of all rows.
    const int asked = std::min(ASKED, n);
    std::vector<int> counts;
    for (int count = 16; count < turned; count += 16) counts.push_back(count);
    counts.push_back(turned);
    std::vector<float> rest(z(n) * counts.size());
    for (int i = 0; i < n; i++) {
        const float *row = rows.data() + z(i) * z(turned);
        float sum = 0.0f;
        int at = turned;
        for (size_t k = counts.size(); k-- > 0;) {
            for (; at > counts[k] - 1; at--) sum += row[at - 1] * row[at - 1];
            rest[z(i) * counts.size() + k] = std::sqrt(sum);
        }
    }
    std::vector<size_t> near(counts.size());
    std::vector<float> squared(z(n) * counts.size());
    for (int q = 0; q < asked; q++) {
        const int own = asked > 1 ? static_cast<int>(static_cast<int64_t>(q) * (n - 1) / (asked - 1)) : 0;
        const float *query = rows.data() + z(own) * z(turned), *query_rest = rest.data() + z(own) * counts.size();
        float nearest = std::numeric_limits<float>::infinity();
        for (int i = 0; i < n; i++) {
            const float *row = rows.data() + z(i) * z(turned);
            float sum = 0.0f;
            int at = 0;
            for (size_t k = 0; k < counts.size(); k++) {
                for (; at < counts[k] - 1; at++) sum += (query[at] - row[at]) * (query[at] - row[at]);
                const float apart = query_rest[k] - rest[z(i) * counts.size() + k];
                squared[z(i) * counts.size() + k] = sum + apart * apart;
            }
            const float last = query[turned - 1] - row[turned - 1];
            if (i != own) nearest = std::min(nearest, sum + last * last);
        }
        for (int i = 0; i < n; i++)
            for (size_t k = 0; k < counts.size(); k++)
                near[k] += i != own && squared[z(i) * counts.size() + k] <= SLACK * nearest;
    }
    int chosen = turned;
    double best = std::numeric_limits<double>::infinity();
    for (size_t k = 0; k < counts.size(); k++) {
        const double share = static_cast<double>(near[k]) / (static_cast<double>(asked) * n);
        const double turning = TURN * static_cast<double>(space.axes.size()) / space.count;
        const double cost = counts[k] < turned ? counts[k] + form.fine_cost * (share + turning)
                                               : space.width + form.fine_cost * share * EXACT;
        if (cost < best) best = cost, chosen = counts[k];
    }
    return chosen;
}

// The first coordinates, with the length of the others in place of the last one.
Doubles first_of(const Doubles &coordinates, int n, int turned, int count) {
    if (count == turned) return coordinates;
    Doubles found(z(n) * z(count));
    for (int i = 0; i < n; i++) {
        const double *row = coordinates.data() + z(i) * z(turned);
        double *into = found.data() + z(i) * z(count), rest = 0.0;
        std::copy(row, row + count - 1, into);
        for (int k = count - 1; k < turned; k++) rest += row[k] * row[k];
        into[count - 1] = std::sqrt(rest);
    }
    return found;
}

struct Extent {
    Doubles low, high;
    explicit Extent(int count)
        : low(z(count), std::numeric_limits<double>::infinity()), high(z(count), -std::numeric_limits<double>::infinity()) {}

    void take(const Doubles &values) {
        for (size_t i = 0; i < values.size(); i++) {
            const size_t k = i % low.size();
            // Written so that a number that is none is kept.
            if (!(values[i] >= low[k])) low[k] = values[i];
            if (!(values[i] <= high[k])) high[k] = values[i];
        }
    }

    RoundingOwned rounding(int level) const {
        RoundingOwned made;
        float most = 0.0f;
        for (size_t k = 0; k < low.size(); k++) {
            const auto middle = static_cast<float>((low[k] + high[k]) / 2);
            const double far = std::max(high[k] - static_cast<double>(middle), static_cast<double>(middle) - low[k]);
            // Rounded up: the library counts on no row lying outside.
            const float reach = std::nextafter(static_cast<float>(far), std::numeric_limits<float>::infinity());
            if (!std::isfinite(middle) || !std::isfinite(reach)) throw std::invalid_argument("rows that are not finite");
            made.middle.push_back(middle), made.reach.push_back(reach);
            most = std::max(most, reach);
        }
        made.step = std::max(static_cast<float>(static_cast<double>(most) / level * 1.000001), LEAST_STEP);
        if (!std::isfinite(made.step)) throw std::invalid_argument("rows that are not finite");
        for (float reach : made.reach) made.most.push_back(static_cast<int32_t>(std::nearbyint(reach / made.step)));
        return made;
    }
};

// Round coordinates (n, count) in place; the largest distance of a row from its rounded form is kept.
std::vector<int32_t> round_rows(const Doubles &values, RoundingOwned &how) {
    const size_t count = how.middle.size();
    std::vector<int32_t> rounded(values.size());
    double worst = 0.0;
    for (size_t row = 0; row * count < values.size(); row++) {
        double off = 0.0;
        for (size_t k = 0; k < count; k++) {
            const double centered = values[row * count + k] - static_cast<double>(how.middle[k]);
            const double most = how.most[k], step = static_cast<double>(how.step);
            const double whole = std::clamp(std::nearbyint(centered / step), -most, most);
            rounded[row * count + k] = static_cast<int32_t>(whole);
            off += (centered - step * whole) * (centered - step * whole);
        }
        worst = std::max(worst, off);
    }
    // A little more: the library counts on no row being farther.
    how.error = std::max(how.error, static_cast<float>(std::sqrt(worst) * 1.00001 + 1e-37));
    how.error = std::nextafter(how.error, std::numeric_limits<float>::infinity());
    return rounded;
}

void pack_rows(PackedBank &into, const Space &space, const InstructionSet &form, int coarse) {
    const int units = coarse / form.unit, count = space.count;
    const size_t unit = z(form.unit), group_rows = z(form.rows);
    for (int start = 0; start < count; start += BLOCK) {
        const int n = std::min(BLOCK, count - start);
        const Doubles values = space.coordinates(start, n);
        const std::vector<int32_t> rounded = round_rows(first_of(values, n, space.turned, coarse), into.coarse);
        for (int i = 0; i < n; i++) {
            const int32_t *row = rounded.data() + z(i) * z(coarse);
            int32_t squares = 0;
            for (int k = 0; k < coarse; k++) {
                squares += row[k] * row[k];
                const size_t at = ((z(start + i) / group_rows * z(units) + z(k) / unit) * group_rows + z(start + i) % group_rows) * unit;
                into.packed[at + z(k) % unit] = static_cast<uint8_t>(row[k] + into.offset[z(k)]);
            }
            into.halves[z(start + i)] = squares >> 1;
        }
        if (!into.fine.size()) continue;
        const std::vector<int32_t> fine = round_rows(values, into.whole);
        std::transform(fine.begin(), fine.end(), into.fine.data() + z(start) * z(space.turned),
                       [](int32_t x) { return static_cast<int8_t>(x); });
    }
}

}  // namespace

Rounding RoundingOwned::as_c() const {
    return {middle.data(), reach.data(), static_cast<int32_t>(middle.size()), step, error};
}

std::unique_ptr<PackedBank> pack_bank(const float *keys, int channels, int count, const InstructionSet &form) {
    auto made = std::make_unique<PackedBank>();
    const int width = up(channels, 8);
    made->rows = Aligned<float>(z(count) * z(width));
    for (int c = 0; c < channels; c++)
        for (int i = 0; i < count; i++) made->rows[z(i) * z(width) + z(c)] = keys[z(c) * z(count) + z(i)] * -0.5f;
    Space space = find_space(made->rows.data(), count, width, channels);
    int coarse = std::min(choose_coarse(space, form), space.turned);
    if (coarse == space.turned) space.make_plain(), coarse = space.turned;
    Extent first(coarse), all(space.turned);
    for (int start = 0; start < count; start += BLOCK) {
        const int n = std::min(BLOCK, count - start);
        const Doubles values = space.coordinates(start, n);
        all.take(values);
        first.take(first_of(values, n, space.turned, coarse));
    }
    made->coarse = first.rounding(form.level);
    made->whole = all.rounding(FINE_LEVEL);
    made->offset = form.negative ? std::vector<int32_t>(z(coarse), 0) : made->coarse.most;
    const int groups = (count + form.rows - 1) / form.rows, units = coarse / form.unit;
    made->packed = Aligned<uint8_t>(z(groups) * z(form.rows) * z(coarse));
    made->halves = Aligned<int32_t>(z(groups) * z(form.rows));
    std::fill(made->halves.data() + count, made->halves.data() + made->halves.size(), FILLING);
    if (coarse < space.turned) made->fine = Aligned<int8_t>(z(count) * z(space.turned));
    pack_rows(*made, space, form, coarse);
    made->center = space.center;
    made->axes.assign(space.axes.begin(), space.axes.end());
    Bank &bank = made->bank;
    bank = {};
    bank.rows = made->rows.data(), bank.center = made->center.data();
    bank.axes = made->axes.empty() ? nullptr : made->axes.data(), bank.fine = made->fine.data();
    bank.most = made->coarse.most.data(), bank.offset = made->offset.data();
    bank.packed = made->packed.data(), bank.halves = made->halves.data();
    bank.coarse_rounding = made->coarse.as_c();
    if (made->fine.size()) bank.fine_rounding = made->whole.as_c();
    bank.channels = channels, bank.width = width, bank.turned = space.turned;
    bank.units = units, bank.groups = groups, bank.shortened = space.shortened;
    return made;
}

}  // namespace edgead
