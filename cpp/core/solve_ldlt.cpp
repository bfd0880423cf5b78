// SPDX-License-Identifier: Apache-2.0
// Symmetric indefinite factorisation with Bunch and Kaufman's partial pivoting (Golub and Van Loan,
// section 4.4).
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "core/solve_dense.hpp"

namespace fubini::detail {
namespace {

/// Rows and columns p < q of the trailing matrix trade places in its lower triangle; the rows of L to the
/// left of it as well.
void swap_symmetric(double* a, std::ptrdiff_t n, std::ptrdiff_t p, std::ptrdiff_t q) {
    if (p == q) return;
    for (std::ptrdiff_t j = 0; j < p; ++j) std::swap(a[p * n + j], a[q * n + j]);
    for (std::ptrdiff_t j = p + 1; j < q; ++j) std::swap(a[j * n + p], a[q * n + j]);
    for (std::ptrdiff_t i = q + 1; i < n; ++i) std::swap(a[i * n + p], a[i * n + q]);
    std::swap(a[p * n + p], a[q * n + q]);
}

/// Column k of the lower triangle, from row `first` on, side by side in row k of the upper one.
const double* contiguous(double* a, std::ptrdiff_t n, std::ptrdiff_t k, std::ptrdiff_t first) {
    for (std::ptrdiff_t i = first; i < n; ++i) a[k * n + i] = a[i * n + k];
    return a + k * n;
}

}  // namespace

// Only the lower triangle is read and updated. The same entry computed twice, once for each triangle, would
// differ by a rounding, and that difference grows by |l| in every step.
bool factorise_ldlt(double* a, std::ptrdiff_t n, std::ptrdiff_t* pivots) {
    // Bounds the growth of the elements over two steps equally for 1x1 and 2x2 pivots.
    const double alpha = (1.0 + std::sqrt(17.0)) / 8.0;
    double scale = 0.0;
    for (std::ptrdiff_t i = 0; i < n * n; ++i) scale = std::max(scale, std::abs(a[i]));
    const double tiny = std::numeric_limits<double>::epsilon() * static_cast<double>(n) * scale;

    for (std::ptrdiff_t k = 0; k < n;) {
        std::ptrdiff_t r = k;
        double column_max = 0.0;
        for (std::ptrdiff_t i = k + 1; i < n; ++i) {
            if (std::abs(a[i * n + k]) > column_max) {
                column_max = std::abs(a[i * n + k]);
                r = i;
            }
        }
        const double diagonal = std::abs(a[k * n + k]);
        if (!(std::max(diagonal, column_max) > tiny)) return false;
        std::ptrdiff_t swap = k;
        bool two = false;
        if (diagonal < alpha * column_max) {
            double row_max = 0.0;
            for (std::ptrdiff_t j = k; j < r; ++j) row_max = std::max(row_max, std::abs(a[r * n + j]));
            for (std::ptrdiff_t i = r + 1; i < n; ++i) row_max = std::max(row_max, std::abs(a[i * n + r]));
            // Quotients of at most 1: the products of the textbook leave the range of double.
            if (diagonal >= alpha * column_max * (column_max / row_max)) {
                swap = k;
            } else if (std::abs(a[r * n + r]) >= alpha * row_max) {
                swap = r;
            } else {
                swap = r;
                two = true;
            }
        }
        if (!two) {
            swap_symmetric(a, n, k, swap);
            pivots[k] = swap;
            const double inverse = 1.0 / a[k * n + k];
            const double* column = contiguous(a, n, k, k + 1);
            for (std::ptrdiff_t i = k + 1; i < n; ++i) {
                const double l = column[i] * inverse;
                if (l != 0.0) {
                    for (std::ptrdiff_t j = k + 1; j <= i; ++j) a[i * n + j] -= l * column[j];
                }
                a[i * n + k] = l;
            }
            ++k;
            continue;
        }
        swap_symmetric(a, n, k + 1, swap);
        pivots[k] = pivots[k + 1] = -1 - swap;
        const double d11 = a[k * n + k];
        const double d21 = a[(k + 1) * n + k];
        const double d22 = a[(k + 1) * n + k + 1];
        // The off-diagonal element is the largest here, so dividing by it keeps the determinant from
        // overflowing.
        const double u = d11 / d21;
        const double w = d22 / d21;
        const double inverse = 1.0 / (d21 * (u * w - 1.0));
        const double* left = contiguous(a, n, k, k + 2);
        const double* right = contiguous(a, n, k + 1, k + 2);
        for (std::ptrdiff_t i = k + 2; i < n; ++i) {
            const double l1 = (w * left[i] - right[i]) * inverse;
            const double l2 = (u * right[i] - left[i]) * inverse;
            for (std::ptrdiff_t j = k + 2; j <= i; ++j) a[i * n + j] -= l1 * left[j] + l2 * right[j];
            a[i * n + k] = l1;
            a[i * n + k + 1] = l2;
        }
        k += 2;
    }
    return true;
}

void solve_ldlt(const double* a, std::ptrdiff_t n, const std::ptrdiff_t* pivots, double* v) {
    // Later swaps also moved the rows of earlier columns of L, so all of them are applied first.
    for (std::ptrdiff_t k = 0; k < n; ++k) {
        if (pivots[k] >= 0) {
            std::swap(v[k], v[pivots[k]]);
        } else {
            std::swap(v[k + 1], v[-1 - pivots[k]]);
            ++k;
        }
    }
    for (std::ptrdiff_t k = 0; k < n; ++k) {
        const bool two = pivots[k] < 0;
        const double first = v[k];
        const double second = two ? v[k + 1] : 0.0;
        for (std::ptrdiff_t i = k + (two ? 2 : 1); i < n; ++i) {
            v[i] -= a[i * n + k] * first + (two ? a[i * n + k + 1] * second : 0.0);
        }
        if (two) ++k;
    }
    for (std::ptrdiff_t k = 0; k < n; ++k) {
        if (pivots[k] >= 0) {
            v[k] /= a[k * n + k];
            continue;
        }
        const double d21 = a[(k + 1) * n + k];
        const double u = a[k * n + k] / d21;
        const double w = a[(k + 1) * n + k + 1] / d21;
        const double inverse = 1.0 / (d21 * (u * w - 1.0));
        const double first = v[k];
        v[k] = (w * first - v[k + 1]) * inverse;
        v[k + 1] = (u * v[k + 1] - first) * inverse;
        ++k;
    }
    for (std::ptrdiff_t k = n - 1; k >= 0; --k) {
        const bool two = pivots[k] < 0;
        const std::ptrdiff_t first = two ? k - 1 : k;
        for (std::ptrdiff_t i = k + 1; i < n; ++i) {
            v[k] -= a[i * n + k] * v[i];
            if (two) v[first] -= a[i * n + first] * v[i];
        }
        k = first;
    }
    for (std::ptrdiff_t k = n - 1; k >= 0; --k) {
        if (pivots[k] >= 0) {
            std::swap(v[k], v[pivots[k]]);
        } else {
            std::swap(v[k], v[-1 - pivots[k]]);
            --k;
        }
    }
}

}  // namespace fubini::detail
