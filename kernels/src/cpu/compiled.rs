//! The bodies of [`super::scalar`] that the compiler turns into vector code, compiled for an instruction set.

/// Defines the kernels of `scalar` again, for a set of CPU features that has fused multiply-add. Panels of rows are made by the
/// module's `prepare_panel`.
macro_rules! compiled_for {
    ($features:literal) => {
        use crate::cpu::product::Operand;
        use crate::cpu::scalar;
        use crate::cpu::scan::{self, ChannelDecay, HeadToken, ScanToken};

        /// Makes one panel of an operand; see `scalar::prepare`.
        #[target_feature(enable = $features)]
        pub(super) fn prepare(operand: Operand, x: &[f32], stride: usize, n_rows: usize, k: usize, out: &mut [f32]) {
            match operand {
                Operand::Panels => prepare_panel(x, stride, n_rows, k, out),
                Operand::Rows | Operand::Q8 | Operand::Q8K => prepare_rows(operand, x, stride, n_rows, k, out),
            }
        }

        compiled_for! { $features
            fn axpy_f32(y: &mut [f32], s: f32, x: &[f32]) = scalar::axpy_f32::<true>;
            fn add_product(y: &mut [f32], a: &[f32], b: &[f32]) = scalar::add_product::<true>;
            fn max_of(x: &[f32]) -> f32 = scalar::max_of;
            fn exp_sum(x: &mut [f32], max: f32) -> f32 = scalar::exp_sum::<true>;
            fn rms_norm(y: &mut [f32], w: &[f32], eps: f32) = scalar::rms_norm::<true>;
            fn layer_norm(y: &mut [f32], w: &[f32], b: &[f32], eps: f32) = scalar::layer_norm::<true>;
            fn add(y: &mut [f32], x: &[f32]) = scalar::add;
            fn mul(y: &mut [f32], x: &[f32]) = scalar::mul;
            fn scale(y: &mut [f32], s: f32) = scalar::scale;
            fn silu(y: &mut [f32]) = scalar::silu::<true>;
            fn sigmoid(y: &mut [f32]) = scalar::sigmoid::<true>;
            fn softplus(y: &mut [f32]) = scalar::softplus::<true>;
            fn gelu(y: &mut [f32]) = scalar::gelu::<true>;
            fn gelu_tanh(y: &mut [f32]) = scalar::gelu_tanh::<true>;
            fn relu(y: &mut [f32]) = scalar::relu;
            fn silu_mul(gate: &mut [f32], up: &[f32]) = scalar::silu_mul::<true>;
            fn two_products(s: &[f32], a: &[f32], b: &[f32], ya: &mut [f32], yb: &mut [f32]) = scalar::two_products::<true>;
            fn decay_add_outer(s: &mut [f32], w: &[f32], a: &[f32], y: &[f32]) = scalar::decay_add_outer::<true>;
            fn rope_half(x: &mut [f32], cos: &[f32], sin: &[f32]) = scalar::rope_half;
            fn rope_interleaved(x: &mut [f32], cos: &[f32], sin: &[f32]) = scalar::rope_interleaved;
            fn scan_head(state: &mut [f32], tokens: &mut [HeadToken<'_>]) = scan::scan_head::<true>;
            fn scan_channels(state: &mut [f32], decay: &ChannelDecay<'_>, token: &ScanToken<'_>, y: &mut [f32]) = scan::scan_channels::<true>;
            fn prepare_rows(operand: Operand, x: &[f32], stride: usize, n_rows: usize, k: usize, out: &mut [f32]) = scalar::prepare;
        }
    };
    ($features:literal $(fn $name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)? = $body:path;)*) => {
        $(
            #[doc = concat!("[`", stringify!($body), "`] with `", $features, "`.")]
            #[target_feature(enable = $features)]
            pub(super) fn $name($($arg: $type),*) $(-> $result)? {
                $body($($arg),*)
            }
        )*
    };
}

pub(super) use compiled_for;
