// Passes over one row of a hidden state, compiled for several instruction sets.
//
// A row's elements are float, double, Float16 or BFloat16; arithmetic is in double for double and
// in float for the rest. Products are never contracted with sums, so that every processor rounds
// element-wise results alike.
#pragma once

#include <cstdint>

#include "half.h"

namespace expertsteer {

// add_scaled: row <- row + scale * vector, rounded once to the row's type.
// load, store: a row to and from the type of the arithmetic; the row's stride is in elements.
#define EXPERTSTEER_DECLARE_ROWS(Element, Wide)                                       \
  void add_scaled(Element* row, const Wide* vector, Wide scale, std::int64_t width);  \
  void load(const Element* row, std::int64_t stride, Wide* wide, std::int64_t width); \
  void store(const Wide* wide, Element* row, std::int64_t stride, std::int64_t width);
EXPERTSTEER_DECLARE_ROWS(float, float)
EXPERTSTEER_DECLARE_ROWS(double, double)
EXPERTSTEER_DECLARE_ROWS(Float16, float)
EXPERTSTEER_DECLARE_ROWS(BFloat16, float)
#undef EXPERTSTEER_DECLARE_ROWS

// Inner products. Chains of sums are short, so the error is a few roundings of |a| |b|.
float dot(const float* a, const float* b, std::int64_t width);
double dot(const double* a, const double* b, std::int64_t width);

void multiply(float* row, float factor, std::int64_t width);
void multiply(double* row, double factor, std::int64_t width);

}  // namespace expertsteer
