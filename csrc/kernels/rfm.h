// Element-wise passes of the Recursive Feature Machine over symmetric n x n matrices.
//
// Framework-free: raw pointers to contiguous row-major matrices, nothing but small per-thread
// buffers allocated. A symmetric input is read by its lower triangle only. Every entry of an output
// is computed by one thread in one order, so the number of threads does not change a bit.
#pragma once

#include <cstdint>

namespace expertsteer {

// Lower median of the distances sqrt(P_ii + P_jj - 2 P_ij), i > j, of a Gram matrix, their mean
// where the median is zero; exact selection, no n x n temporary. n >= 2.
template <typename T>
T median_distance(const T* gram, std::int64_t n, int threads);

// Laplace kernel K_ij = exp(-D_ij / L), lower triangle with the diagonal, and the weights of its
// gradient W_ij = K_ij / (L D_ij), all of it, zero where D_ij < eps L, or null to leave
// them out. `kernel` may be `gram`.
template <typename T>
void laplace(const T* gram, std::int64_t n, T bandwidth, T eps, T* kernel, T* weights, int threads);

// T = diag(W a) - W diag(a) for one output; its rows sum to zero. Also the row sums W a.
template <typename T>
void gradient_transform(const T* weights, const T* alpha, std::int64_t n, T* transform, T* sums,
                        int threads);

// Copy the lower triangle of an n x n matrix onto its upper one.
template <typename T>
void mirror_lower(T* matrix, std::int64_t n, int threads);

}  // namespace expertsteer
