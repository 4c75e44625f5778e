//! What `tympan convert` and `tympan quantize` have in common on the command line. [`AssemblyArgs`] is the type to read first.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;

use convert::assembly::{Assembly, TensorReport, Weights, Written};
use convert::workers;

use crate::args::{note_threads, parse_threads};
use crate::exit::{Exit, Outcome};
use crate::output::{Destination, refuse_collisions};
use crate::progress::Bar;
use crate::report::{Verbosity, short};
use crate::streams;

/// How planned files are written.
#[derive(Args, Debug)]
pub(crate) struct AssemblyArgs {
    /// List files, tensors, types, shapes, sizes and offsets as they would be written, and write nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Read back what was written and compare it with what it was made from, byte for byte; files that are there already
    /// are compared and not written
    #[arg(long, conflicts_with = "dry_run")]
    verify: bool,

    /// Threads [default: all available cores]
    #[arg(short, long, value_name = "N", value_parser = parse_threads)]
    threads: Option<NonZeroUsize>,

    /// No progress bar
    #[arg(short, long)]
    quiet: bool,

    /// Say how long it took; with --verify hash (XXH64) and error of every tensor
    #[arg(short, long)]
    verbose: bool,
}

impl AssemblyArgs {
    /// Checks where files will be written that are made from `inputs`. Gives their paths, those that links lead to where they
    /// are links.
    ///
    /// Errors: a place that takes no file, a file that is an input.
    pub(crate) fn outputs<'i>(
        &self,
        paths: &[PathBuf],
        inputs: impl IntoIterator<Item = &'i Path>,
    ) -> Outcome<Vec<PathBuf>> {
        if self.dry_run {
            return Ok(paths.to_owned());
        }
        let is_only_read = self.verify && paths.iter().all(|path| path.is_file());
        let find = if is_only_read { Destination::find } else { Destination::check };
        let outputs = paths.iter().map(|path| find(path)).collect::<Outcome<Vec<Destination>>>()?;
        refuse_collisions(&outputs, inputs)?;
        Ok(outputs.iter().map(|output| output.target().to_owned()).collect())
    }

    /// Lists, writes or compares the files, and prints their names.
    pub(crate) fn run<W: Weights>(&self, assembly: &Assembly<'_, W>) -> Outcome<Exit> {
        if self.dry_run {
            streams::print(&assembly.list())?;
            return Ok(Exit::Done);
        }
        note_threads(self.threads, Verbosity::new(self.quiet, false));
        let started = Instant::now();
        let is_there = !assembly.is_begun() && assembly.paths().all(Path::is_file);
        if !(self.verify && is_there) {
            let bar = if assembly.is_streamed() { Bar::of_stream } else { Bar::new };
            let bar = bar(assembly.elements(), self.quiet);
            let result = workers::with(self.threads, || assembly.write(&bar))?;
            bar.finish();
            say_kept(result?);
            let seconds = short(started.elapsed().as_secs_f64());
            Verbosity::new(false, self.verbose)
                .detail(format_args!("{} tensor bytes in {seconds} s", assembly.tensor_bytes()));
        }
        if self.verify {
            let bar = Bar::new(assembly.elements(), self.quiet);
            let mut summary = Summary::default();
            let say = Verbosity::new(false, self.verbose);
            let mut add = |tensor: &TensorReport<'_>| summary.add(tensor, say);
            let result = workers::with(self.threads, || assembly.verify(&bar, &mut add))?;
            bar.finish();
            result?;
            streams::say(summary);
        }
        let names: String = assembly.paths().map(|path| format!("{}\n", path.display())).collect();
        streams::print(&names)?;
        Ok(Exit::Done)
    }
}

/// Says on standard error how much was kept, where something was.
fn say_kept(written: Written) {
    let Written { kept_bytes, new_bytes } = written;
    if kept_bytes > 0 {
        streams::say(format_args!("tensor bytes: {kept_bytes} kept, {new_bytes} written anew"));
    }
}

/// What all tensors that were compared have in common.
#[derive(Default)]
struct Summary {
    n_tensors: usize,
    /// The tensor with the largest error, and that.
    worst: Option<(String, f64)>,
}

impl Summary {
    fn add(&mut self, tensor: &TensorReport<'_>, say: Verbosity) {
        let TensorReport { file, name, dtype, hash, difference } = tensor;
        let (nmse, max_abs) = (difference.nmse(), difference.max_abs);
        let file = file.file_name().unwrap_or_default().display();
        say.detail(format_args!("{file}: {name} {dtype} xxh64 {hash:016x} nmse {nmse:.3e} max {max_abs:.3e}"));
        self.n_tensors += 1;
        if self.worst.as_ref().is_none_or(|(_, worst)| nmse > *worst) {
            self.worst = Some(((*name).to_owned(), nmse));
        }
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "verified: {} tensors, every byte", self.n_tensors)?;
        match &self.worst {
            Some((name, nmse)) => write!(f, "; largest error: nmse {nmse:.3e} ({name})"),
            None => Ok(()),
        }
    }
}
