//! The kernels' [`Format`] of the engine's [`DType`]s, whose geometries agree.

use engine::DType;
use kernels::quant::Format;

/// The format in which kernels read weights of this type; none for integers.
pub const fn format_of(dtype: DType) -> Option<Format> {
    match dtype {
        DType::F32 => Some(Format::F32),
        DType::F16 => Some(Format::F16),
        DType::BF16 => Some(Format::BF16),
        DType::I32 => None,
        DType::Q8_0 => Some(Format::Q8_0),
        DType::Q4_0 => Some(Format::Q4_0),
        DType::Q4_1 => Some(Format::Q4_1),
        DType::Q5_0 => Some(Format::Q5_0),
        DType::Q5_1 => Some(Format::Q5_1),
        DType::IQ4_NL => Some(Format::IQ4_NL),
        DType::Q2_K => Some(Format::Q2_K),
        DType::Q3_K => Some(Format::Q3_K),
        DType::Q4_K => Some(Format::Q4_K),
        DType::Q5_K => Some(Format::Q5_K),
        DType::Q6_K => Some(Format::Q6_K),
    }
}

const _: () = {
    let mut i = 0;
    while i < DType::ALL.len() {
        let block = DType::ALL[i].block();
        if let Some(format) = format_of(DType::ALL[i]) {
            assert!(block.len == format.block_len() && block.bytes == format.block_bytes());
        }
        i += 1;
    }
};
