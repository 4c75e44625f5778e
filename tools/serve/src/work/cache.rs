//! [`AudioCache`]: what the encoder made of clips that came before, within a budget of bytes. The ones that were not asked for
//! longest go first.

use std::collections::{BTreeMap, HashMap};

use models::audio::Features;
use sha2::{Digest, Sha256};

/// Bytes of an entry beside its vectors: the key, twice, and its places in the maps, generously.
const ENTRY_BYTES: usize = 256;

/// Stands for everything that the encoder sees of a clip. Two clips with the same one are the same: nobody can make one that has
/// the key of another's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct ClipKey([u8; 32]);

impl ClipKey {
    /// That of a clip's features: they are all that the encoder is given, and a server has one encoder.
    pub(crate) fn of(features: &Features) -> Self {
        let Features { n_mels, n_frames, values } = features;
        let mut hash = Sha256::new();
        for n in [*n_mels, *n_frames] {
            hash.update((n as u64).to_le_bytes());
        }
        hash.update(bytemuck::cast_slice(values));
        Self(hash.finalize().into())
    }
}

/// What came of asking, and what is there.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct CacheFigures {
    /// Clips that were there.
    pub hits: u64,
    /// Clips that were not.
    pub misses: u64,
    /// Bytes that are used.
    pub bytes: usize,
}

struct Entry {
    /// `[n_tokens, n_embd]`.
    vectors: Box<[f32]>,
    /// The number of the last use.
    used: u64,
}

/// Audio vectors by clip.
pub(crate) struct AudioCache {
    entries: HashMap<ClipKey, Entry>,
    /// The same by their last use.
    order: BTreeMap<u64, ClipKey>,
    n_uses: u64,
    most_bytes: usize,
    figures: CacheFigures,
}

impl AudioCache {
    /// An empty one, for so many bytes; of 0 it stays empty.
    pub(crate) fn new(most_bytes: usize) -> Self {
        Self {
            entries: HashMap::new(),
            order: BTreeMap::new(),
            n_uses: 0,
            most_bytes,
            figures: CacheFigures::default(),
        }
    }

    /// The vectors of a clip, where they are there.
    pub(crate) fn get(&mut self, key: &ClipKey) -> Option<&[f32]> {
        let Some(entry) = self.entries.get_mut(key) else {
            self.figures.misses += 1;
            return None;
        };
        self.figures.hits += 1;
        self.order.remove(&entry.used);
        self.n_uses += 1;
        entry.used = self.n_uses;
        self.order.insert(entry.used, *key);
        Some(&entry.vectors)
    }

    /// Keeps the vectors of a clip, where they fit at all.
    pub(crate) fn put(&mut self, key: ClipKey, vectors: &[f32]) {
        let bytes = entry_bytes(vectors);
        if bytes > self.most_bytes || self.entries.contains_key(&key) {
            return;
        }
        while self.figures.bytes + bytes > self.most_bytes
            && let Some((_, oldest)) = self.order.pop_first()
            && let Some(entry) = self.entries.remove(&oldest)
        {
            self.figures.bytes -= entry_bytes(&entry.vectors);
        }
        self.n_uses += 1;
        self.order.insert(self.n_uses, key);
        self.entries.insert(key, Entry { vectors: vectors.into(), used: self.n_uses });
        self.figures.bytes += bytes;
    }

    /// What came of it so far.
    pub(crate) fn figures(&self) -> CacheFigures {
        self.figures
    }
}

fn entry_bytes(vectors: &[f32]) -> usize {
    size_of_val(vectors) + ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(n_mels: usize, n_frames: usize, value: f32) -> Features {
        Features { n_mels, n_frames, values: vec![value; n_mels * n_frames] }
    }

    #[test]
    fn keys_differ_where_the_encoder_sees_something_else() {
        let one = ClipKey::of(&features(2, 6, 0.5));
        assert_eq!(one, ClipKey::of(&features(2, 6, 0.5)));
        let mut other = features(2, 6, 0.5);
        other.values[11] = f32::from_bits(0.5f32.to_bits() + 1);
        for other in [other, features(6, 2, 0.5), features(3, 4, 0.5), features(2, 6, -0.5), features(2, 7, 0.5)] {
            assert_ne!(one, ClipKey::of(&other));
        }
    }

    #[test]
    fn the_ones_not_asked_for_longest_go_and_the_budget_holds() {
        let key = |i: usize| ClipKey::of(&features(1, 1, i as f32));
        let vectors = |i: usize| vec![i as f32; 100];
        let each = entry_bytes(&vectors(0));
        let mut cache = AudioCache::new(3 * each + 10);
        for i in 0..3 {
            cache.put(key(i), &vectors(i));
        }
        assert_eq!(cache.get(&key(0)), Some(&vectors(0)[..]));
        cache.put(key(3), &vectors(3));
        assert_eq!(cache.get(&key(1)), None);
        for i in [0, 2, 3] {
            assert_eq!(cache.get(&key(i)), Some(&vectors(i)[..]));
        }
        assert_eq!(cache.figures(), CacheFigures { hits: 4, misses: 1, bytes: 3 * each });
        // One that needs the room of two; one that does not fit; one that is there.
        cache.put(key(4), &vec![4.0; 150]);
        assert!(cache.get(&key(0)).is_none() && cache.get(&key(2)).is_none());
        cache.put(key(5), &vec![5.0; 1000]);
        assert_eq!(cache.get(&key(5)), None);
        let bytes = cache.figures().bytes;
        cache.put(key(3), &vectors(3));
        assert_eq!(cache.figures().bytes, bytes);

        // Full for long, by sizes that look random.
        let mut size = 1usize;
        for i in 10..5000 {
            size = (size * 75 + 74) % 65537;
            cache.put(key(i), &vec![0.0; size % 200]);
            let sum: usize = cache.entries.values().map(|entry| entry_bytes(&entry.vectors)).sum();
            assert!(cache.figures().bytes == sum && sum <= 3 * each + 10 && cache.order.len() == cache.entries.len());
        }
        assert!(cache.figures().bytes > each);
        let mut none = AudioCache::new(0);
        none.put(key(0), &[]);
        assert!(none.get(&key(0)).is_none() && none.figures().bytes == 0);
    }
}
