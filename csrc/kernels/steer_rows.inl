// Rows in half precision, a register of elements at a time. Included by steer_rows.cpp once per
// instruction set, in a namespace that has the types of its registers and their conversions.

constexpr int kLanes = sizeof(FloatRegister) / sizeof(float);
typedef float Floats __attribute__((vector_size(sizeof(FloatRegister))));
typedef std::uint32_t Words __attribute__((vector_size(sizeof(FloatRegister))));

inline Floats to_floats(HalfRegister halves, BFloat16) {
  return (Floats)((Words)to_words(halves) << 16);
}

inline HalfRegister to_halves(Floats values, BFloat16) {  // as `narrow` of half.h
  const Words bits = (Words)values;
  const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return to_low_halves((WordRegister)(values != values ? (bits >> 16) | 0x40u : rounded));
}

inline Floats to_floats(HalfRegister halves, Float16) { return (Floats)float16_to_floats(halves); }

inline HalfRegister to_halves(Floats values, Float16) {
  return floats_to_float16((FloatRegister)values);
}

template <typename T, typename Element>
inline T read_lanes(const Element* from) {
  T lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

template <typename Half>
void add_scaled_lanes(Half* row, const float* vector, float scale, std::int64_t width) {
  std::int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    const Floats sum = to_floats(read_lanes<HalfRegister>(row + i), Half()) +
                       scale * read_lanes<Floats>(vector + i);
    const HalfRegister halves = to_halves(sum, Half());
    std::memcpy(row + i, &halves, sizeof halves);
  }
  add_scaled_in(row + i, vector + i, scale, width - i);
}

template <typename Half>
void load_lanes(const Half* row, float* wide, std::int64_t width) {
  std::int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    const Floats values = to_floats(read_lanes<HalfRegister>(row + i), Half());
    std::memcpy(wide + i, &values, sizeof values);
  }
  load_in(row + i, 1, wide + i, width - i);
}

template <typename Half>
void store_lanes(const float* wide, Half* row, std::int64_t width) {
  std::int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    const HalfRegister halves = to_halves(read_lanes<Floats>(wide + i), Half());
    std::memcpy(row + i, &halves, sizeof halves);
  }
  store_in(wide + i, row + i, 1, width - i);
}
