//! [`SlotWork`]: what is done with what a slot keeps, between two requests that use it.

use models::scheduler::Scheduler;

use crate::api::error::ApiError;

/// Something to do with a slot.
pub(crate) enum SlotWork {
    /// Its sequence as bytes.
    Save {
        /// The slot.
        place: usize,
    },
    /// It has this sequence from now on.
    Restore {
        /// The slot.
        place: usize,
        /// What [`SlotWork::Save`] gave.
        bytes: Vec<u8>,
    },
    /// It keeps nothing.
    Erase {
        /// The slot.
        place: usize,
    },
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct SlotAnswer {
    /// Tokens that were saved, restored or erased.
    pub n_tokens: usize,
    /// The sequence, where it was to be saved.
    pub bytes: Vec<u8>,
}

impl SlotWork {
    /// The slot.
    pub(crate) fn place(&self) -> usize {
        match self {
            Self::Save { place } | Self::Restore { place, .. } | Self::Erase { place } => *place,
        }
    }

    /// Does it.
    ///
    /// Errors: 400 where there is nothing to save, and for bytes that are no sequence of this model.
    pub(super) fn carry_out(&self, scheduler: &mut Scheduler, place: usize) -> Result<SlotAnswer, ApiError> {
        match self {
            Self::Save { .. } => {
                let nothing = || ApiError::field("id_slot", format!("slot {place} keeps nothing that could be saved"));
                let bytes = scheduler.save(place)?.ok_or_else(nothing)?;
                Ok(SlotAnswer { n_tokens: scheduler.kept(place).map_or(0, <[u32]>::len), bytes })
            }
            Self::Restore { bytes, .. } => {
                let restored = scheduler.restore(place, bytes);
                let n_tokens = restored.map_err(|error| ApiError::field("filename", format!("filename: {error}")))?;
                Ok(SlotAnswer { n_tokens, bytes: Vec::new() })
            }
            Self::Erase { .. } => Ok(SlotAnswer { n_tokens: scheduler.forget(place), bytes: Vec::new() }),
        }
    }
}
