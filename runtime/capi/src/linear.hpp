// The linear algebra that packing a memory bank needs, in double.
#pragma once

#include <vector>

namespace edgead {

// out (n, m) = a (n, k) times b (k, m), all row by row; m is a multiple of 8.
void multiply(const double *a, const double *b, double *out, int n, int k, int m);

// Eigenvectors of a symmetric matrix (n, n) as columns, of ascending eigenvalues; false where they are not found.
bool eigenvectors(std::vector<double> &matrix, int n);

}  // namespace edgead
