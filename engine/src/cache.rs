//! [`GraphCache`]: compiled graphs by key, least recently used first out.

use crate::key::GraphKey;

/// Compiled graphs of one session. Looking one up allocates nothing.
pub struct GraphCache<T> {
    entries: Vec<Entry<T>>,
    capacity: usize,
    clock: u64,
}

struct Entry<T> {
    key: GraphKey,
    used: u64,
    compiled: T,
}

impl<T> GraphCache<T> {
    /// A cache for at most `capacity` graphs; 0 forgets each one at the next insertion.
    pub fn new(capacity: usize) -> Self {
        Self { entries: Vec::new(), capacity, clock: 0 }
    }

    /// Number of graphs held.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no graph is held.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Index of the graph with this key, which becomes the most recently used one.
    pub fn find(&mut self, key: &GraphKey) -> Option<usize> {
        self.clock += 1;
        let index = self.entries.iter().position(|e| e.key == *key)?;
        self.entries[index].used = self.clock;
        Some(index)
    }

    /// Adds a graph, dropping the least recently used one if the cache is full. Returns its index, and whether one was
    /// dropped.
    pub fn insert(&mut self, key: GraphKey, compiled: T) -> (usize, bool) {
        self.clock += 1;
        let full = self.entries.len() >= self.capacity.max(1);
        if full && let Some((oldest, _)) = self.entries.iter().enumerate().min_by_key(|(_, e)| e.used) {
            self.entries.swap_remove(oldest);
        }
        self.entries.push(Entry { key, used: self.clock, compiled });
        (self.entries.len() - 1, full)
    }

    /// The graph at an index that [`Self::find`] or [`Self::insert`] just gave.
    pub fn get_mut(&mut self, index: usize) -> &mut T {
        &mut self.entries[index].compiled
    }

    /// The graph at an index that [`Self::find`] or [`Self::insert`] just gave.
    pub fn peek(&self, index: usize) -> &T {
        &self.entries[index].compiled
    }

    /// Drops every graph.
    pub fn clear(&mut self) {
        self.entries.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Rows, Stage};

    fn key(n_tokens: u32) -> GraphKey {
        GraphKey { stage: Stage::Tokens, n_seqs: 1, n_tokens, n_kv: 64, rows: Rows::Last }
    }

    #[test]
    fn the_least_recently_used_graph_goes_first() {
        let mut cache = GraphCache::new(2);
        cache.insert(key(1), 1);
        cache.insert(key(2), 2);
        assert!(cache.find(&key(1)).is_some());
        assert_eq!(cache.insert(key(3), 3), (1, true));
        assert!(cache.find(&key(2)).is_none());
        let at = cache.find(&key(1)).unwrap();
        assert_eq!(*cache.get_mut(at), 1);
    }
}
