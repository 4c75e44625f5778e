//! What computes on this machine.

use backends::BackendDef;
use backends::cpu::{CpuBackend, CpuOptions};
use kernels::cpu::Isa;

use super::listing::table;
use crate::args::DeviceArgs;
use crate::exit::{Failure, Outcome};
use crate::report::cpu_name;

/// A line for every backend.
///
/// Errors: a device that does not exist.
pub(super) fn text(args: &DeviceArgs) -> Outcome<String> {
    let threads = args.open()?.threads;
    let rows: Vec<Vec<String>> = backends::list().iter().map(|b| row(b, threads)).collect::<Outcome<_>>()?;
    Ok(table(&["device", "threads", "instructions", "processor", ""], &rows, &[1]))
}

fn row(BackendDef { name, about, .. }: &BackendDef, threads: usize) -> Outcome<Vec<String>> {
    if *name != backends::cpu::NAME {
        return Ok(vec![(*name).into(), "1".into(), String::new(), String::new(), (*about).into()]);
    }
    let options = CpuOptions { threads: std::num::NonZeroUsize::new(threads), isa: None };
    let cpu = CpuBackend::new(&options).map_err(Failure::refused)?;
    let others = Isa::ALL.into_iter().filter(|isa| isa.is_supported() && *isa != cpu.isa());
    let others: Vec<&str> = others.map(Isa::name).collect();
    let others = if others.is_empty() { String::new() } else { format!("TYMPAN_ISA also takes {}", others.join(", ")) };
    Ok(vec![(*name).into(), cpu.n_threads().to_string(), cpu.isa().to_string(), cpu_name(), others])
}
