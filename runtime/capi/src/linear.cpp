// A matrix product in registers, and eigenvectors by Householder and QL.
#include "linear.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "processor.h"

namespace edgead {

namespace {

typedef double Four __attribute__((vector_size(32), aligned(8), may_alias));

// Four rows and eight columns at a time stay in registers.
template <int ROWS> inline __attribute__((always_inline)) void tile(const double *a, const double *b, double *out, int k, int m) {
    Four low[ROWS] = {}, high[ROWS] = {};
    for (int i = 0; i < k; i++) {
        const Four first = *reinterpret_cast<const Four *>(b + static_cast<long>(i) * m);
        const Four second = *reinterpret_cast<const Four *>(b + static_cast<long>(i) * m + 4);
        for (int r = 0; r < ROWS; r++) {
            const double x = a[static_cast<long>(r) * k + i];
            low[r] += first * x, high[r] += second * x;
        }
    }
    for (int r = 0; r < ROWS; r++) {
        *reinterpret_cast<Four *>(out + static_cast<long>(r) * m) = low[r];
        *reinterpret_cast<Four *>(out + static_cast<long>(r) * m + 4) = high[r];
    }
}

inline __attribute__((always_inline)) void multiply_all(const double *a, const double *b, double *out, int n, int k, int m) {
    for (int column = 0; column < m; column += 8) {
        int row = 0;
        for (; row + 4 <= n; row += 4)
            tile<4>(a + static_cast<long>(row) * k, b + column, out + static_cast<long>(row) * m + column, k, m);
        for (; row < n; row++)
            tile<1>(a + static_cast<long>(row) * k, b + column, out + static_cast<long>(row) * m + column, k, m);
    }
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) void multiply_avx2(const double *a, const double *b, double *out, int n, int k, int m) {
    multiply_all(a, b, out, n, k, m);
}
#endif

// Householder's reduction to three diagonals, then the QL method with implicit shifts (Bowdler, Martin, Reinsch and
// Wilkinson, "The QR and QL algorithms for symmetric matrices", Numerische Mathematik 11, 1968).
struct Symmetric {
    double *v;  // (n, n)
    int n;
    std::vector<double> d, e;

    double &at(int row, int column) { return v[static_cast<long>(row) * n + column]; }

    void reduce() {
        for (int j = 0; j < n; j++) d[static_cast<size_t>(j)] = at(n - 1, j);
        for (int i = n - 1; i > 0; i--) reduce_row(i);
        for (int i = 0; i < n - 1; i++) accumulate(i);
        for (int j = 0; j < n; j++) d[static_cast<size_t>(j)] = at(n - 1, j), at(n - 1, j) = 0.0;
        at(n - 1, n - 1) = 1.0;
        e[0] = 0.0;
    }

    void reduce_row(int i) {
        double *const dd = d.data(), *const ee = e.data();
        double scale = 0.0, h = 0.0;
        for (int k = 0; k < i; k++) scale += std::fabs(dd[k]);
        if (scale == 0.0) {
            ee[i] = dd[i - 1];
            for (int j = 0; j < i; j++) dd[j] = at(i - 1, j), at(i, j) = 0.0, at(j, i) = 0.0;
            dd[i] = 0.0;
            return;
        }
        for (int k = 0; k < i; k++) dd[k] /= scale, h += dd[k] * dd[k];
        double f = dd[i - 1], g = f > 0 ? -std::sqrt(h) : std::sqrt(h);
        ee[i] = scale * g;
        h -= f * g;
        dd[i - 1] = f - g;
        std::fill(ee, ee + i, 0.0);
        for (int j = 0; j < i; j++) {
            f = dd[j];
            at(j, i) = f;
            g = ee[j] + at(j, j) * f;
            for (int k = j + 1; k <= i - 1; k++) g += at(k, j) * dd[k], ee[k] += at(k, j) * f;
            ee[j] = g;
        }
        f = 0.0;
        for (int j = 0; j < i; j++) ee[j] /= h, f += ee[j] * dd[j];
        const double hh = f / (h + h);
        for (int j = 0; j < i; j++) ee[j] -= hh * dd[j];
        for (int j = 0; j < i; j++) {
            f = dd[j], g = ee[j];
            for (int k = j; k <= i - 1; k++) at(k, j) -= f * ee[k] + g * dd[k];
            dd[j] = at(i - 1, j);
            at(i, j) = 0.0;
        }
        dd[i] = h;
    }

    void accumulate(int i) {
        double *const dd = d.data();
        at(n - 1, i) = at(i, i);
        at(i, i) = 1.0;
        const double h = dd[i + 1];
        if (h != 0.0) {
            for (int k = 0; k <= i; k++) dd[k] = at(k, i + 1) / h;
            std::vector<double> sums(static_cast<size_t>(i) + 1, 0.0);
            for (int k = 0; k <= i; k++)
                for (int j = 0; j <= i; j++) sums[static_cast<size_t>(j)] += at(k, i + 1) * at(k, j);
            for (int k = 0; k <= i; k++)
                for (int j = 0; j <= i; j++) at(k, j) -= sums[static_cast<size_t>(j)] * dd[k];
        }
        for (int k = 0; k <= i; k++) at(k, i + 1) = 0.0;
    }

    // The columns that a rotation mixes are rows here: transposed, so that they lie side by side in memory.
    bool diagonalise() {
        std::vector<double> turned(static_cast<size_t>(n) * static_cast<size_t>(n));
        const auto flip = [&] {
            for (int i = 0; i < n; i++)
                for (int j = 0; j < n; j++) turned[static_cast<size_t>(j) * static_cast<size_t>(n) + static_cast<size_t>(i)] = at(i, j);
            std::memcpy(v, turned.data(), turned.size() * sizeof(double));
        };
        flip();
        double *const dd = d.data(), *const ee = e.data();
        for (int i = 1; i < n; i++) ee[i - 1] = ee[i];
        ee[n - 1] = 0.0;
        double f = 0.0, most = 0.0;
        for (int l = 0; l < n; l++) {
            most = std::max(most, std::fabs(dd[l]) + std::fabs(ee[l]));
            int m = l;
            while (m < n - 1 && std::fabs(ee[m]) > 2.220446049250313e-16 * most) m++;
            for (int tries = 0; m > l && std::fabs(ee[l]) > 2.220446049250313e-16 * most; tries++) {
                if (tries > 60) return false;
                step(l, m, f);
            }
            dd[l] += f;
            ee[l] = 0.0;
        }
        flip();
        return true;
    }

    void step(int l, int m, double &f) {
        double *const dd = d.data(), *const ee = e.data();
        double g = dd[l], p = (dd[l + 1] - g) / (2.0 * ee[l]), r = std::hypot(p, 1.0);
        if (p < 0) r = -r;
        dd[l] = ee[l] / (p + r);
        dd[l + 1] = ee[l] * (p + r);
        const double next = dd[l + 1], h = g - dd[l];
        for (int i = l + 2; i < n; i++) dd[i] -= h;
        f += h;
        p = dd[m];
        double c = 1.0, c2 = 1.0, c3 = 1.0, s = 0.0, s2 = 0.0;
        const double el1 = ee[l + 1];
        for (int i = m - 1; i >= l; i--) {
            c3 = c2, c2 = c, s2 = s;
            g = c * ee[i];
            const double q = c * p;
            r = std::hypot(p, ee[i]);
            ee[i + 1] = s * r;
            s = ee[i] / r, c = p / r;
            p = c * dd[i] - s * g;
            dd[i + 1] = q + s * (c * g + s * dd[i]);
            double *const one = v + static_cast<long>(i) * n, *const two = one + n;
            for (int k = 0; k < n; k++) {
                const double x = two[k];
                two[k] = s * one[k] + c * x;
                one[k] = c * one[k] - s * x;
            }
        }
        p = -s * s2 * c3 * el1 * ee[l] / next;
        ee[l] = s * p;
        dd[l] = c * p;
    }
};

}  // namespace

void multiply(const double *a, const double *b, double *out, int n, int k, int m) {
#if defined(__x86_64__)
    static const bool wide = processor_features() & HAS_AVX2;
    if (wide) return multiply_avx2(a, b, out, n, k, m);
#endif
    multiply_all(a, b, out, n, k, m);
}

bool eigenvectors(std::vector<double> &matrix, int n) {
    const auto size = static_cast<size_t>(n);
    Symmetric work{matrix.data(), n, std::vector<double>(size), std::vector<double>(size)};
    work.reduce();
    if (!work.diagonalise()) return false;
    std::vector<size_t> order(size);
    for (size_t i = 0; i < size; i++) order[i] = i;
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return work.d[a] < work.d[b]; });
    std::vector<double> sorted(size * size);
    for (size_t row = 0; row < size; row++)
        for (size_t column = 0; column < size; column++) sorted[row * size + column] = matrix[row * size + order[column]];
    matrix.swap(sorted);
    return true;
}

}  // namespace edgead
