//! [`Memory`]: arrays indexed `[slot, ..]`, one slot per sequence, the same slot in every layer. There is no class for
//! caches, recurrent states or hybrids: what a model remembers is what it declared in its [`States`].
//!
//! A [`Slot`] is the right to one sequence. Once it is released, every method refuses it, whoever has the place since.
//!
//! A call that fails after it began to run may have changed recurrent states of its sequences. Their slots are *torn*:
//! only [`Memory::release`] and rewinding to 0 are accepted for them. Attention rows past a sequence's length are never
//! read, so a sequence without recurrent state, or without a past, is what it was before the call.
//!
//! **Taking back.** A session may be opened so that the last tokens of a call can be taken back from recurrent states too: their
//! inputs are kept, and folded by the next call as far as they are still there ([`crate::op::Op::JoinPending`]). Until then
//! they are *pending*. They are part of the sequence: copies and snapshots have them. Positions further back are reached by
//! [`Memory::checkpoint`]. Or slots have two rows of such states, which calls read and write in turns: what a sequence was before
//! its last call is still there, and is come back to without a copy.
//!
//! **Growth.** Every slot has addresses for the largest context from the beginning, and memory for what its sequence needs:
//! it is committed as the sequence grows and given back when the slot is released, but for what [`Memory::keep_spare`] allows.
//! Nothing moves, so graphs stay bound.
//! Where the system reserves no addresses without memory, buffers are as large as the context that was asked for, and
//! are replaced by larger ones, with a copy, when a larger one is; [`Stats`](crate::session::Stats) counts that.

mod checkpoint;

use std::ops::Range;
use std::sync::Arc;

use crate::backend::{Backend, Buffer};
use crate::error::{Error, Result, refuse};
use crate::snapshot;
use crate::state::{StateLayout, StateOptions, StateSpec, States};
use checkpoint::Checkpoint;

/// Positions for which memory is committed at once: few enough that it is little more than what sequences need, enough that
/// most steps need not ask for any.
const COMMIT_POSITIONS: usize = 16;

/// The place of one sequence in memory, until it is released.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Slot {
    index: u32,
    /// How often the place was given away before.
    generation: u32,
}

impl Slot {
    /// Position in every state buffer.
    pub const fn index(self) -> usize {
        self.index as usize
    }
}

/// A place for a sequence.
#[derive(Clone, Copy, Default, Debug)]
struct Place {
    /// That of the slot that holds it, or of the next one.
    generation: u32,
    /// `None`: free.
    held: Option<Held>,
    /// Positions that have memory while the place is free.
    spare: usize,
}

/// The sequence in a slot.
#[derive(Clone, Copy, Debug)]
struct Held {
    /// Tokens seen.
    n_past: usize,
    /// The last ones of them, which states of fixed extent do not fold yet.
    n_pending: usize,
    /// Whether a call began to change recurrent states and has not ended well.
    torn: bool,
    /// Positions that have memory; with the first ones, states without positions have theirs.
    committed: usize,
    /// Which row of states that have two holds the sequence.
    row: usize,
    /// Tokens that the other row folds, where it holds the sequence as it was.
    before: Option<usize>,
}

/// State buffers with addresses for so many positions per slot.
struct Buffers {
    layout: StateLayout,
    buffers: Vec<Buffer>,
}

impl Buffers {
    fn reserve(homes: &Homes, states: &States, options: &StateOptions) -> Result<Self> {
        let layout = states.layout(options)?;
        let buffer = |(i, spec): (usize, &StateSpec)| homes.of(i).reserve(slot_bytes(spec) * options.n_slots);
        let buffers = layout.specs().iter().enumerate().map(buffer).collect::<Result<_>>()?;
        Ok(Self { layout, buffers })
    }

    /// Every state with its buffer and backend.
    fn iter<'a>(&'a self, homes: &'a Homes) -> impl Iterator<Item = (&'a StateSpec, &'a Buffer, &'a dyn Backend)> {
        let states = self.layout.specs().iter().zip(&self.buffers).enumerate();
        states.map(|(i, (spec, buffer))| (spec, buffer, homes.of(i)))
    }

    /// Gives a slot that has memory for `from` positions memory for `to`, in all states or in none.
    fn commit(&self, homes: &Homes, slot: Slot, from: usize, to: usize) -> Result<()> {
        for (i, (spec, buffer, backend)) in self.iter(homes).enumerate() {
            let result = backend.commit(buffer, positions(spec, slot, from, to));
            if result.is_err() {
                for (spec, buffer, backend) in self.iter(homes).take(i) {
                    backend.decommit(buffer, positions(spec, slot, from, to));
                }
                return result;
            }
        }
        Ok(())
    }
}

/// Where states lie.
struct Homes {
    backends: Vec<Arc<dyn Backend>>,
    /// The backend of every state.
    of_states: Vec<usize>,
}

impl Homes {
    fn of(&self, state: usize) -> &dyn Backend {
        &*self.backends[self.of_states[state]]
    }
}

/// Bytes of all rows of a slot.
fn slot_bytes(spec: &StateSpec) -> usize {
    spec.bytes() * spec.n_rows
}

/// Bytes that a slot needs for `to` positions and not for `from` of them.
fn positions(spec: &StateSpec, slot: Slot, from: usize, to: usize) -> Range<usize> {
    let [from, to] = [from, to].map(|n| slot.index() * slot_bytes(spec) + spec.used_bytes(n) * spec.n_rows);
    from..to
}

/// State buffers of all slots, and which slots hold a sequence of what length.
pub struct Memory {
    homes: Homes,
    states: Buffers,
    places: Vec<Place>,
    /// Of every place, in the order of their positions.
    checkpoints: Vec<Vec<Checkpoint>>,
    /// Positions that a sequence may have.
    n_ctx: usize,
    /// Sizes of the buffers: positions that a slot has addresses for.
    reserved: StateOptions,
    committed_bytes: usize,
    /// Most bytes that free places keep.
    max_spare_bytes: usize,
    n_moves: u64,
    has_recurrent: bool,
    /// Whether states that fold what came before have two rows in every slot.
    two_rows: bool,
}

impl Memory {
    /// Slots of these states and sizes; `homes` has the backend of every state.
    ///
    /// Errors: as for [`States::layout`], and those of the backend.
    pub fn new(
        backends: &[Arc<dyn Backend>],
        homes: Vec<usize>,
        states: &States,
        options: &StateOptions,
    ) -> Result<Self> {
        let homes = Homes { backends: backends.to_vec(), of_states: homes };
        let largest = StateOptions { n_ctx: states.largest_context().max(options.n_ctx), ..*options };
        let (buffers, reserved) = match Buffers::reserve(&homes, states, &largest) {
            Err(Error::OutOfMemory { .. }) => (Buffers::reserve(&homes, states, options)?, *options),
            buffers => (buffers?, largest),
        };
        let has_recurrent = buffers.layout.specs().iter().any(|s| s.role.is_recurrent());
        let two_rows = buffers.layout.specs().iter().any(|s| s.n_rows > 1);
        Ok(Self {
            homes,
            states: buffers,
            places: vec![Place::default(); options.n_slots],
            checkpoints: (0..options.n_slots).map(|_| Vec::new()).collect(),
            n_ctx: options.n_ctx,
            reserved,
            committed_bytes: 0,
            max_spare_bytes: 0,
            n_moves: 0,
            has_recurrent,
            two_rows,
        })
    }

    /// Lets sequences have `n_ctx` positions. Returns whether buffers had to move, and graphs are bound to old ones.
    ///
    /// Errors: those of [`Self::new`]; nothing has changed then.
    pub(crate) fn raise_context(&mut self, states: &States, n_ctx: usize) -> Result<bool> {
        let moves = n_ctx > self.reserved.n_ctx;
        if moves {
            self.give_back_spare();
            let reserved = StateOptions { n_ctx, ..self.reserved };
            let larger = Buffers::reserve(&self.homes, states, &reserved)?;
            for (index, place) in (0..).zip(&self.places) {
                let Some(held) = place.held else { continue };
                let slot = Slot { index, generation: place.generation };
                larger.commit(&self.homes, slot, 0, held.committed)?;
                let both = self.states.iter(&self.homes).zip(larger.iter(&self.homes));
                for ((from, old, backend), (to, new, _)) in both {
                    let mut bytes = vec![0; from.used_bytes(held.committed) * from.n_rows];
                    backend.read(old, slot.index() * slot_bytes(from), &mut bytes)?;
                    backend.write(new, slot.index() * slot_bytes(to), &bytes)?;
                }
            }
            (self.states, self.reserved) = (larger, reserved);
            self.n_moves += 1;
        }
        self.n_ctx = n_ctx;
        Ok(moves)
    }

    /// The states as graphs see them.
    pub fn layout(&self) -> &StateLayout {
        &self.states.layout
    }

    /// What every slot has addresses for.
    pub fn specs(&self) -> &[StateSpec] {
        self.states.layout.specs()
    }

    /// State buffers, in the order of the specs.
    pub fn buffers(&self) -> &[Buffer] {
        &self.states.buffers
    }

    /// The backend of every state, by index into the session's list.
    pub fn homes(&self) -> &[usize] {
        &self.homes.of_states
    }

    /// Number of slots.
    pub fn n_slots(&self) -> usize {
        self.places.len()
    }

    /// Positions that a sequence may have.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// Positions that every slot has addresses for: what graphs are made for.
    pub(crate) fn reserved_context(&self) -> usize {
        self.reserved.n_ctx
    }

    /// Bytes of committed memory.
    pub fn bytes(&self) -> usize {
        self.committed_bytes
    }

    /// How often all states moved to larger buffers, because the system reserves no addresses without memory.
    pub(crate) fn n_moves(&self) -> u64 {
        self.n_moves
    }

    /// Number of slots without a sequence.
    pub fn n_free(&self) -> usize {
        self.places.iter().filter(|place| place.held.is_none()).count()
    }

    /// The lowest free slot, for a sequence that starts from zeros.
    pub fn acquire(&mut self) -> Result<Slot> {
        let free = self.places.iter().position(|place| place.held.is_none());
        self.acquire_at(free.unwrap_or(self.places.len()))
    }

    /// This slot, if it is free.
    pub fn acquire_at(&mut self, index: usize) -> Result<Slot> {
        match self.places.get_mut(index) {
            Some(Place { generation, held: held @ None, spare }) => {
                let committed = std::mem::take(spare);
                *held = Some(Held { n_past: 0, n_pending: 0, torn: false, committed, row: 0, before: None });
                let index = u32::try_from(index).expect("layouts have far fewer slots");
                Ok(Slot { index, generation: *generation })
            }
            Some(Place { held: Some(_), .. }) | None => Err(Error::NoFreeSlot { n_slots: self.places.len() }),
        }
    }

    /// Frees a slot and gives its memory back, but for what [`Self::keep_spare`] allows; one that was released before stays so.
    /// What it held is overwritten by the place's next owner, never read.
    pub fn release(&mut self, slot: Slot) {
        let Ok(&Held { committed, .. }) = self.held(slot) else { return };
        let Place { generation, held, spare } = &mut self.places[slot.index()];
        (*generation, *held, *spare) = (generation.wrapping_add(1), None, committed);
        self.checkpoints[slot.index()].clear();
        let spare_bytes: usize = self.places.iter().map(|place| self.used_bytes(place.spare)).sum();
        if spare_bytes > self.max_spare_bytes {
            self.give_back(slot.index());
        }
    }

    /// Free places keep so many bytes together for the sequences that come next, as long as the memory is not needed
    /// elsewhere. To get memory from the system costs about a microsecond a page: with the caches of a small model, 3 % of a
    /// prompt.
    pub fn keep_spare(&mut self, bytes: usize) {
        self.max_spare_bytes = bytes;
        self.give_back_spare();
    }

    /// Bytes of so many positions of a slot, in all states.
    fn used_bytes(&self, n_positions: usize) -> usize {
        let used = |spec: &StateSpec| spec.used_bytes(n_positions) * spec.n_rows;
        if n_positions == 0 { 0 } else { self.specs().iter().map(used).sum() }
    }

    /// Gives back what a free place has kept.
    fn give_back(&mut self, index: usize) {
        let spare = std::mem::take(&mut self.places[index].spare);
        if spare == 0 {
            return;
        }
        for (spec, buffer, backend) in self.states.iter(&self.homes) {
            let start = index * slot_bytes(spec);
            backend.decommit(buffer, start..start + slot_bytes(spec));
        }
        self.committed_bytes -= self.used_bytes(spare);
    }

    fn give_back_spare(&mut self) {
        (0..self.places.len()).for_each(|index| self.give_back(index));
    }

    /// The sequence of a slot. Errors: `Batch` for a slot that was released, or is of a larger memory.
    #[inline]
    fn held(&self, slot: Slot) -> Result<&Held> {
        match self.places.get(slot.index()) {
            Some(Place { generation, held: Some(held), .. }) if *generation == slot.generation => Ok(held),
            Some(_) | None => no_sequence(slot),
        }
    }

    /// Changes what is known of a slot that [`Self::held`] found.
    fn set(&mut self, slot: Slot, held: Held) {
        self.places[slot.index()].held = Some(held);
    }

    /// Tokens that the sequence in this slot has seen.
    ///
    /// Errors: `Batch` for a slot that was released, `TornSlot` after a call that failed half-way.
    pub fn n_past(&self, slot: Slot) -> Result<usize> {
        match *self.held(slot)? {
            Held { n_past, torn: false, .. } => Ok(n_past),
            Held { torn: true, .. } => Err(Error::TornSlot { slot: slot.index() }),
        }
    }

    /// How many tokens of a call can be taken back behind it ([`Self::rewind`]): any number, or as many as the session was opened
    /// for where states fold what came before.
    pub fn revocable(&self) -> usize {
        if self.has_recurrent { self.states.layout.n_pending } else { usize::MAX }
    }

    /// The first position that the sequence in this slot can be rewound to, beside 0: that of its first pending token where states
    /// fold what came before.
    ///
    /// Errors: as [`Self::n_past`].
    pub fn rewindable(&self, slot: Slot) -> Result<usize> {
        let n_past = self.n_past(slot)?;
        Ok(if self.has_recurrent { n_past - self.held(slot)?.n_pending } else { 0 })
    }

    /// Whether a sequence can go back to where it was before its last call, whatever its states fold.
    pub fn keeps_last_call(&self) -> bool {
        !self.has_recurrent || self.two_rows
    }

    /// Rows of states without positions that a call of this sequence reads and writes.
    #[inline]
    pub(crate) fn rows(&self, slot: Slot) -> [usize; 2] {
        let index = slot.index();
        if !self.two_rows {
            return [index; 2];
        }
        let row = self.held(slot).map_or(0, |held| held.row);
        [2 * index + row, 2 * index + 1 - row]
    }

    /// Where the sequence of a slot begins in a state's buffer.
    fn start(&self, slot: Slot, spec: &StateSpec) -> usize {
        let row = if spec.n_rows > 1 { self.held(slot).map_or(0, |held| held.row) } else { 0 };
        slot.index() * slot_bytes(spec) + row * spec.bytes()
    }

    /// Room for `n_tokens` more tokens, or [`Error::ContextFull`].
    pub(crate) fn check_room(&self, slot: Slot, n_tokens: usize) -> Result<()> {
        let wanted = self.n_past(slot)?.saturating_add(n_tokens);
        if wanted > self.n_ctx { Err(Error::ContextFull { capacity: self.n_ctx, wanted }) } else { Ok(()) }
    }

    /// Memory for `n_tokens` more tokens of a sequence, where it has none yet. A step sees to it for its whole batch; asked
    /// for before that, a failure concerns this sequence alone.
    ///
    /// Errors: as [`Self::n_past`]; `ContextFull`; those of the backend, after which the slot is as before.
    #[inline]
    pub fn grow(&mut self, slot: Slot, n_tokens: usize) -> Result<()> {
        self.check_room(slot, n_tokens)?;
        let &Held { n_past, committed, .. } = self.held(slot)?;
        if n_past + n_tokens > committed { self.commit_to(slot, n_past + n_tokens) } else { Ok(()) }
    }

    /// Memory for so many positions of a slot and some more.
    #[cold]
    fn commit_to(&mut self, slot: Slot, n_positions: usize) -> Result<()> {
        let held = *self.held(slot)?;
        let committed = n_positions.next_multiple_of(COMMIT_POSITIONS).min(self.reserved.n_ctx);
        if committed > held.committed {
            if let Err(error) = self.states.commit(&self.homes, slot, held.committed, committed) {
                if self.places.iter().all(|place| place.spare == 0) {
                    return Err(error);
                }
                self.give_back_spare();
                self.states.commit(&self.homes, slot, held.committed, committed)?;
            }
            let added = |spec: &StateSpec| positions(spec, slot, held.committed, committed).len();
            self.committed_bytes += self.specs().iter().map(added).sum::<usize>();
            self.set(slot, Held { committed, ..held });
        }
        Ok(())
    }

    /// Tokens of the sequence in this slot that its states of fixed extent do not fold yet; 0 for none.
    pub(crate) fn n_pending(&self, slot: Slot) -> usize {
        self.held(slot).map_or(0, |held| held.n_pending)
    }

    /// A call, which was checked, is about to change this slot's states; until [`Self::commit`] the slot counts as torn
    /// where that matters. Returns the tokens that its sequence has seen.
    pub(crate) fn begin(&mut self, slot: Slot) -> usize {
        let Some(held) = &mut self.places[slot.index()].held else { return 0 };
        held.torn = self.has_recurrent && held.n_past > 0;
        // The other row is about to be written.
        held.before = None;
        held.n_past
    }

    /// The call has ended well and the sequence is `n_tokens` longer, of which the last `n_pending` are not folded.
    pub(crate) fn commit(&mut self, slot: Slot, n_tokens: usize, n_pending: usize) {
        let n_pending = if self.has_recurrent { n_pending } else { 0 };
        let two_rows = self.two_rows;
        if let Some(held) = &mut self.places[slot.index()].held {
            if two_rows {
                // A new sequence began with zeros, which are in no row.
                held.before = Some(held.n_past - held.n_pending).filter(|&before| before > 0);
                held.row = 1 - held.row;
            }
            held.n_past += n_tokens;
            held.n_pending = n_pending;
            held.torn = false;
        }
    }

    /// Makes `to` a copy of the sequence in `from`.
    ///
    /// Errors: either slot released or torn. If the backend fails to copy, `to` is torn.
    pub fn copy(&mut self, from: Slot, to: Slot) -> Result<()> {
        let n_past = self.n_past(from)?;
        self.n_past(to)?;
        if from == to {
            return Ok(());
        }
        self.commit_to(to, n_past)?;
        self.cut_checkpoints(to, 0);
        let n_pending = self.n_pending(from);
        let held = Held { n_past, n_pending, before: None, ..*self.held(to)? };
        self.set(to, Held { torn: true, ..held });
        for (spec, buffer, backend) in self.states.iter(&self.homes) {
            let start = self.start(from, spec);
            let bytes = spec.held_bytes(n_past, n_pending);
            backend.copy(buffer, start..start + bytes, self.start(to, spec))?;
        }
        self.set(to, held);
        Ok(())
    }

    /// Drops the tokens from position `n_past` on: exact, or [`Error::NotRewindable`] where a recurrent state folds some of them
    /// and is neither in a row that the last call left nor in a checkpoint there ([`Self::reachable`] tells).
    ///
    /// Errors: `Batch` for a slot that was released, or a position behind its sequence's end; `NotRewindable`; `TornSlot` where
    /// nothing of a torn slot is left there; those of the backend, which leave the slot torn.
    pub fn rewind(&mut self, slot: Slot, n_past: usize) -> Result<()> {
        let held = *self.held(slot)?;
        let now = held.n_past;
        if n_past > now {
            return refuse(format_args!("cannot rewind from {now} forward to {n_past}"));
        }
        // Position 0 is exact for every state, torn ones too: the first step reads zeros.
        let is_here = n_past == 0 || (!held.torn && n_past >= self.rewindable(slot)?);
        let is_before = !is_here && !held.torn && held.before == Some(n_past);
        if !is_here && !is_before && !self.resume(slot, n_past)? {
            return Err(if held.torn { Error::TornSlot { slot: slot.index() } } else { Error::NotRewindable });
        }
        self.cut_checkpoints(slot, n_past);
        let n_pending = held.n_pending.saturating_sub(now - n_past);
        let row = if is_before { 1 - held.row } else { held.row };
        let before = held.before.filter(|&before| before < n_past);
        self.set(slot, Held { n_past, n_pending, torn: false, row, before, ..held });
        Ok(())
    }

    /// What one state of one slot has memory for, torn or not.
    ///
    /// Errors: `Batch` for a slot that was released, `NoState` for a state that the model does not have.
    pub fn read_state(&self, slot: Slot, state: usize) -> Result<Vec<u8>> {
        let &Held { committed, .. } = self.held(slot)?;
        let (index, n_states) = (state, self.specs().len());
        let spec = self.specs().get(index).ok_or(Error::NoState { index, n_states })?;
        self.read_part(slot, index, spec.used_bytes(committed))
    }

    /// The first `bytes` bytes of one state of one slot.
    fn read_part(&self, slot: Slot, state: usize, bytes: usize) -> Result<Vec<u8>> {
        let mut out = vec![0; bytes];
        self.homes.of(state).read(&self.states.buffers[state], self.start(slot, &self.specs()[state]), &mut out)?;
        Ok(out)
    }

    /// The states that a snapshot of a sequence with so many pending rows has.
    fn sections(&self, n_pending: usize) -> &[StateSpec] {
        if n_pending > 0 { self.specs() } else { &self.specs()[..self.states.layout.n_kept] }
    }

    /// The sequence in a slot as bytes; `model` says of which model.
    pub(crate) fn snapshot(&self, slot: Slot, model: u64) -> Result<Vec<u8>> {
        let n_past = self.n_past(slot)?;
        let n_pending = self.n_pending(slot);
        let specs = self.sections(n_pending);
        let mut writer = snapshot::Writer::new(model, n_past, n_pending, specs.len());
        for (i, spec) in specs.iter().enumerate() {
            writer.section(&self.read_part(slot, i, spec.held_bytes(n_past, n_pending))?);
        }
        Ok(writer.finish())
    }

    /// Makes the slot hold the sequence of a snapshot of the same model. The slot is as before after every error but that
    /// of a backend which fails to write, which leaves it torn.
    pub(crate) fn restore(&mut self, slot: Slot, bytes: &[u8], model: u64) -> Result<()> {
        self.n_past(slot)?;
        let snapshot = snapshot::read(bytes, model)?;
        let (n_past, n_pending) = (snapshot.n_past, snapshot.n_pending);
        if n_past > self.n_ctx {
            return Err(Error::ContextFull { capacity: self.n_ctx, wanted: n_past });
        }
        let room = self.states.layout.n_pending;
        if n_pending > room {
            let what = format!("it has {n_pending} pending rows, and a slot of this session {room}");
            return Err(Error::Snapshot { what });
        }
        let sections = snapshot.sections(self.sections(n_pending).iter().map(|s| s.held_bytes(n_past, n_pending)))?;
        self.commit_to(slot, n_past)?;
        self.cut_checkpoints(slot, 0);
        let held = Held { n_past, n_pending, before: None, ..*self.held(slot)? };
        self.set(slot, Held { torn: true, ..held });
        for ((spec, buffer, backend), section) in self.states.iter(&self.homes).zip(sections) {
            backend.write(buffer, self.start(slot, spec), section)?;
        }
        self.set(slot, held);
        Ok(())
    }
}

#[cold]
fn no_sequence<T>(slot: Slot) -> Result<T> {
    refuse(format_args!("slot {} holds no sequence, or another one than when it was acquired", slot.index))
}
