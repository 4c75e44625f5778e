//! Numeric kernels: slices in, slices out.
