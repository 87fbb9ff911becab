#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "clones.h"
#include "gaussian.h"
#include "share_out.h"

namespace expertsteer {
namespace {

constexpr std::int64_t kSerial = 1 << 20;  // codes below which starting threads gains nothing
constexpr std::int64_t kLanes = 8, kRegisters = 8, kTile = kLanes * kRegisters;
typedef double Doubles __attribute__((vector_size(kLanes * sizeof(double)), aligned(8)));

// Centred codes with a component per row of `columns` [r, padded], zero beyond n.
EXPERTSTEER_CLONES void centre(const double* codes, std::int64_t n, std::int64_t r,
                               std::int64_t padded, double* mean, double* columns) {
  std::fill(mean, mean + r, 0.0);
  for (std::int64_t row = 0; row < n; ++row)
    for (std::int64_t j = 0; j < r; ++j) mean[j] += codes[row * r + j];
  for (std::int64_t j = 0; j < r; ++j) mean[j] /= n;
  for (std::int64_t first = 0; first < n; first += kLanes) {
    const std::int64_t stop = std::min(n, first + kLanes);
    for (std::int64_t j = 0; j < r; ++j)
      for (std::int64_t row = first; row < stop; ++row)
        columns[j * padded + row] = codes[row * r + j] - mean[j];
  }
  for (std::int64_t j = 0; j < r; ++j)
    std::fill(columns + j * padded + n, columns + (j + 1) * padded, 0.0);
}

// The lower triangle of the products of rows of `columns`, four at a time: `gram` [r, r].
EXPERTSTEER_CLONES void gram(const double* columns, std::int64_t r, std::int64_t padded,
                             double* gram) {
  for (std::int64_t i = 0; i < r; ++i) {
    const double* own = columns + i * padded;
    for (std::int64_t j = 0; j <= i; j += 4) {
      const double* other[4];
      for (int c = 0; c < 4; ++c) other[c] = columns + std::min(j + c, i) * padded;
      Doubles sums[4] = {};
      for (std::int64_t t = 0; t < padded; t += kLanes)
        for (int c = 0; c < 4; ++c)
          sums[c] += *reinterpret_cast<const Doubles*>(own + t) *
                     *reinterpret_cast<const Doubles*>(other[c] + t);
      for (std::int64_t c = 0; c < std::min<std::int64_t>(4, i - j + 1); ++c) {
        double sum = 0;
        for (int lane = 0; lane < kLanes; ++lane) sum += sums[c][lane];
        gram[i * r + j + c] = sum;
      }
    }
  }
}

// The inverse of the Cholesky factor of `matrix` [r, r], whose lower triangle the factor replaces.
EXPERTSTEER_CLONES bool invert_factor(double* matrix, std::int64_t r, double* inverse) {
  std::fill(inverse, inverse + r * r, 0.0);
  for (std::int64_t i = 0; i < r; ++i) {
    double *own = matrix + i * r, *row = inverse + i * r;
    for (std::int64_t j = 0; j < i; ++j) {
      double rest = own[j];
      for (std::int64_t k = 0; k < j; ++k) rest -= own[k] * matrix[j * r + k];
      own[j] = rest / matrix[j * r + j];
      own[i] -= own[j] * own[j];
      for (std::int64_t k = 0; k <= j; ++k) row[k] -= own[j] * inverse[j * r + k];
    }
    if (!(own[i] > 0)) return false;
    own[i] = std::sqrt(own[i]);
    row[i] = 1;
    for (std::int64_t k = 0; k <= i; ++k) row[k] /= own[i];
  }
  return true;
}

// `whitened` [r, n] = inverse columns, in double precision until it is stored.
EXPERTSTEER_CLONES void apply(const double* inverse, const double* columns, std::int64_t n,
                              std::int64_t r, std::int64_t padded, float* whitened) {
  for (std::int64_t first = 0; first < n; first += kTile) {
    const std::int64_t size = std::min(kTile, n - first);
    for (std::int64_t i = 0; i < r; ++i) {
      Doubles sums[kRegisters] = {};
      for (std::int64_t j = 0; j <= i; ++j) {
        const double scale = inverse[i * r + j];
        const double* column = columns + j * padded + first;
        for (int c = 0; c < kRegisters; ++c)
          sums[c] += scale * *reinterpret_cast<const Doubles*>(column + c * kLanes);
      }
      const double* flat = reinterpret_cast<const double*>(sums);
      for (std::int64_t t = 0; t < size; ++t) whitened[i * n + first + t] = flat[t];
    }
  }
}

}  // namespace

bool whiten_cpu(const Whiten& args, int threads) {
  const std::int64_t n = args.n, r = args.r, padded = (n + kTile - 1) / kTile * kTile;
  std::atomic<bool> whole{true};
  if (args.layers * n * r < kSerial) threads = 1;
  threads = std::max<std::int64_t>(1, std::min<std::int64_t>(threads, args.layers));
  share_out(threads, threads, [&](std::int64_t part) {
    std::vector<double> work(r * (padded + 2 * r + 1));  // one allocation per thread
    double *columns = work.data(), *matrix = columns + r * padded, *inverse = matrix + r * r;
    for (std::int64_t l = part; l < args.layers && whole; l += threads) {
      centre(args.codes + l * n * r, n, r, padded, inverse + r * r, columns);
      gram(columns, r, padded, matrix);
      if (invert_factor(matrix, r, inverse))
        apply(inverse, columns, n, r, padded, args.whitened + l * r * n);
      else
        whole = false;
    }
  });
  return whole;
}

}  // namespace expertsteer
