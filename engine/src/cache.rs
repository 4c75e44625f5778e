//! [`GraphCache`]: compiled graphs by key, least recently used first out.

use crate::key::GraphKey;

/// Compiled graphs of one session. Looking one up allocates nothing.
pub(crate) struct GraphCache<T> {
    /// Apart from the graphs: a search then looks at little memory, which is cold after a run.
    entries: Vec<Entry>,
    graphs: Vec<T>,
    /// Where the last search ended, and the next one often will.
    latest: usize,
    capacity: usize,
    clock: u64,
}

struct Entry {
    key: GraphKey,
    used: u64,
}

impl<T> GraphCache<T> {
    /// A cache for at most `capacity` graphs; 0 forgets each one at the next insertion.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { entries: Vec::new(), graphs: Vec::new(), latest: 0, capacity, clock: 0 }
    }

    /// Index of the graph with this key, which becomes the most recently used one.
    pub(crate) fn find(&mut self, key: &GraphKey) -> Option<usize> {
        self.clock += 1;
        let latest = self.entries.get(self.latest).is_some_and(|e| e.key == *key);
        let index = if latest { self.latest } else { self.entries.iter().position(|e| e.key == *key)? };
        self.entries[index].used = self.clock;
        self.latest = index;
        Some(index)
    }

    /// Adds a graph in place of the least recently used one if the cache is full. Returns its index, and that one.
    pub(crate) fn insert(&mut self, key: GraphKey, compiled: T) -> (usize, Option<T>) {
        self.clock += 1;
        let full = self.entries.len() >= self.capacity.max(1);
        let oldest = self.entries.iter().enumerate().min_by_key(|(_, e)| e.used).filter(|_| full);
        let oldest = oldest.map(|(oldest, _)| oldest);
        let dropped = oldest.map(|oldest| {
            self.entries.swap_remove(oldest);
            self.graphs.swap_remove(oldest)
        });
        self.entries.push(Entry { key, used: self.clock });
        self.graphs.push(compiled);
        self.latest = self.graphs.len() - 1;
        (self.latest, dropped)
    }

    /// The graph at an index that [`Self::find`] or [`Self::insert`] just gave.
    pub(crate) fn get_mut(&mut self, index: usize) -> &mut T {
        &mut self.graphs[index]
    }

    /// The graph at an index that [`Self::find`] or [`Self::insert`] just gave.
    pub(crate) fn peek(&self, index: usize) -> &T {
        &self.graphs[index]
    }

    /// Every graph that is held.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.graphs.iter()
    }

    /// Drops every graph.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.graphs.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Stage;

    fn key(n_tokens: u32) -> GraphKey {
        GraphKey { stage: Stage::Tokens, n_seqs: 1, n_tokens, n_kv: 64, n_outputs: 1, n_pending: 0 }
    }

    #[test]
    fn the_least_recently_used_graph_goes_first() {
        let mut cache = GraphCache::new(2);
        cache.insert(key(1), 1u32);
        cache.insert(key(2), 2);
        assert!(cache.find(&key(1)).is_some());
        assert_eq!(cache.insert(key(3), 3), (1, Some(2)));
        assert!(cache.find(&key(2)).is_none());
        for n in [1, 3, 3, 1] {
            let at = cache.find(&key(n)).unwrap();
            assert_eq!(*cache.get_mut(at), n);
        }
        cache.insert(key(4), 4);
        assert_eq!((cache.find(&key(3)), cache.iter().count()), (None, 2));
        cache.clear();
        assert!(cache.find(&key(4)).is_none());
    }
}
