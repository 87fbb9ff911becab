// The counts of one row of every pair of layers. ksg_cpu.cpp includes this once per instruction
// set, each time in a namespace of its own: the vector types below are lowered where they stand.

// GCC and Clang lower these to whatever registers the chosen instruction set has.
typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));
typedef std::int32_t Ints __attribute__((vector_size(kLanes * sizeof(std::int32_t))));

// The next 16 points.
inline void load(Floats& to, const float* from) { std::memcpy(&to, from, sizeof to); }

// The last points, fewer than 16, and beside them points infinitely far away, which nobody counts.
// Apart from the whole ones: a vector that may be filled in part is kept in memory, not a register.
inline void load_last(Floats& to, const float* from, std::int64_t left) {
  to = Floats{} + kInfinity;
  std::memcpy(&to, from, left * sizeof(float));
}

inline void load_next(Floats& to, const float* from, std::int64_t left) {
  left >= kLanes ? load(to, from) : load_last(to, from, left);
}

inline std::int32_t sum(const Ints& lanes) {
  std::int32_t total = 0;
  for (int i = 0; i < kLanes; ++i) total += lanes[i];
  return total;
}

inline float largest(const Floats& lanes) {
  float most = lanes[0];
  for (int i = 1; i < kLanes; ++i) most = lanes[i] > most ? lanes[i] : most;
  return most;
}

// Every lane keeps its K smallest in order: a newcomer sinks through the list by K minima and
// maxima, without a branch.
template <int K>
inline void keep_smallest(Floats (&best)[K], const Floats& u, const Floats& v) {
  Floats sinking = u > v ? u : v;
  for (int t = 0; t < K; ++t) {
    // Two comparisons, so that either line is one minimum or maximum and no mask.
    const Floats held = best[t];
    best[t] = sinking < held ? sinking : held;
    sinking = sinking > held ? sinking : held;
  }
}

// Distance to the K-th neighbour in the joint space.
template <int K>
inline float kth_joint(const float* x, const float* y, std::int64_t n) {
  Floats best[K], u, v;
  for (int t = 0; t < K; ++t) best[t] = Floats{} + kInfinity;
  std::int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) {
    load(u, x + j);
    load(v, y + j);
    keep_smallest<K>(best, u, v);
  }
  if (j < n) {
    load_last(u, x + j, n - j);
    load_last(v, y + j, n - j);
    keep_smallest<K>(best, u, v);
  }
  // The smallest head of the 16 lists, K times over; ties leave one by one.
  float lists[K + 1][kLanes];
  for (int t = 0; t < K; ++t) std::memcpy(lists[t], &best[t], sizeof lists[t]);
  for (int i = 0; i < kLanes; ++i) lists[K][i] = kInfinity;
  int taken[kLanes] = {};
  float heads[kLanes], found = kInfinity;
  std::memcpy(heads, lists[0], sizeof heads);
  for (int round = 0; round < K; ++round) {
    int smallest = 0;
    for (int i = 1; i < kLanes; ++i) smallest = heads[i] < heads[smallest] ? i : smallest;
    found = heads[smallest];
    heads[smallest] = lists[++taken[smallest]][smallest];
  }
  return found;
}

inline void count_nearer(const float* x, const float* y, std::int64_t n, float radius,
                         std::int32_t* n_x, std::int32_t* n_y) {
  Ints in_x{}, in_y{};
  Floats u, v;
  std::int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) {
    load(u, x + j);
    load(v, y + j);
    in_x -= u < radius;  // true is -1
    in_y -= v < radius;
  }
  if (j < n) {
    load_last(u, x + j, n - j);
    load_last(v, y + j, n - j);
    in_x -= u < radius;
    in_y -= v < radius;
  }
  *n_x = sum(in_x);
  *n_y = sum(in_y);
}

// The sides of the rectangle are the widest x and y among the neighbours; every point tied with
// the k-th is a neighbour, so no order of the rows matters.
inline void count_in_rectangle(const float* x, const float* y, std::int64_t n, float radius,
                               std::int32_t* n_x, std::int32_t* n_y) {
  Floats side_x{}, side_y{}, u, v;
  for (std::int64_t j = 0; j < n; j += kLanes) {
    load_next(u, x + j, n - j);
    load_next(v, y + j, n - j);
    const Ints neighbour = (u > v ? u : v) <= radius;
    side_x = (neighbour & (u > side_x)) ? u : side_x;
    side_y = (neighbour & (v > side_y)) ? v : side_y;
  }
  const float far_x = largest(side_x), far_y = largest(side_y);
  Ints in_x{}, in_y{};
  for (std::int64_t j = 0; j < n; j += kLanes) {
    load_next(u, x + j, n - j);
    load_next(v, y + j, n - j);
    in_x -= u <= far_x;
    in_y -= v <= far_y;
  }
  *n_x = sum(in_x);
  *n_y = sum(in_y);
}

template <int K>
inline void count_pairs(const KsgCounts& a, std::int64_t row) {
  for (std::int64_t p = 0; p < a.layers_x; ++p) {
    const float* x = a.x + (p * a.rows + row) * a.n;
    for (std::int64_t q = 0; q < a.layers_y; ++q) {
      const float* y = a.y + (q * a.rows + row) * a.n;
      const std::int64_t out = (p * a.layers_y + q) * a.rows + row;
      const float radius = K ? kth_joint<K ? K : 1>(x, y, a.n) : kth_joint_long(x, y, a.n, a.k);
      (a.variant == 1 ? count_nearer : count_in_rectangle)(x, y, a.n, radius, a.n_x + out,
                                                           a.n_y + out);
    }
  }
}

void distances_from(const MaxNormDistances& a, std::int64_t task) {
  const std::int64_t layer = task / a.rows, row = a.first + task % a.rows;
  const float* codes = a.codes + layer * a.components * a.n;
  float* out = a.out + task * a.n;
  for (std::int64_t j = 0; j < a.n; ++j) out[j] = std::fabs(codes[j] - codes[row]);
  for (std::int64_t c = 1; c < a.components; ++c) {
    codes += a.n;
    const float own = codes[row];
    for (std::int64_t j = 0; j < a.n; ++j) {
      const float distance = std::fabs(codes[j] - own);
      out[j] = distance > out[j] ? distance : out[j];
    }
  }
  out[row] = kInfinity;
}

CountRow count_row_for(int k) {
  constexpr CountRow by_k[] = {count_pairs<0>, count_pairs<1>, count_pairs<2>,
                               count_pairs<3>, count_pairs<4>, count_pairs<5>,
                               count_pairs<6>, count_pairs<7>, count_pairs<8>};
  return by_k[k <= 8 ? k : 0];
}
