//! The set of present extents of a spool: which bytes are already on disk.

use std::collections::BTreeMap;
use std::ops::Range;

/// Disjoint, non-adjacent, non-empty extents in order: start → end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Extents(BTreeMap<u64, u64>);

impl Extents {
    /// Adds `[start, end)`, merging with what it touches or overlaps.
    pub(super) fn insert(&mut self, range: Range<u64>) {
        let Range { mut start, mut end } = range;
        if start >= end {
            return;
        }
        while let Some((&before, &until)) = self.0.range(..=end).next_back() {
            if until < start {
                break;
            }
            self.0.remove(&before);
            start = start.min(before);
            end = end.max(until);
        }
        self.0.insert(start, end);
    }

    /// Adds `[start, end)` and says which parts of it are new.
    pub(super) fn claim(&mut self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut news = Vec::new();
        let mut position = range.start;
        while position < range.end {
            let (start, next) = self.gap(position);
            let end = next.unwrap_or(range.end).min(range.end);
            if start < end {
                news.push(start..end);
            }
            position = end.max(start);
        }
        self.insert(range);
        news
    }

    /// Where the present bytes that begin at `position` end; `position` itself when its byte is absent.
    pub(super) fn end_of_run(&self, position: u64) -> u64 {
        match self.0.range(..=position).next_back() {
            Some((_, &end)) if end > position => end,
            _ => position,
        }
    }

    /// How many bytes are present.
    pub(super) fn total_bytes(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }

    /// The first absent bytes at or after `position`: where they start, and where the next present extent does.
    pub(super) fn gap(&self, position: u64) -> (u64, Option<u64>) {
        let start = self.end_of_run(position);
        (start, self.0.range(start..).next().map(|(&next, _)| next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn merges_neighbours() {
        let mut extents = Extents::default();
        extents.insert(10..20);
        extents.insert(30..40);
        assert_eq!(extents.gap(0), (0, Some(10)));
        assert_eq!(extents.gap(15), (20, Some(30)));
        extents.insert(20..30);
        assert_eq!(extents.end_of_run(10), 40);
        assert_eq!(extents.end_of_run(40), 40);
        assert_eq!(extents.gap(12), (40, None));
    }

    proptest! {
        /// Against a trivial model: one flag a byte.
        #[test]
        fn equals_a_bitmap(ranges in proptest::collection::vec((0u64..200, 0u64..40), 0..40)) {
            let mut extents = Extents::default();
            let mut model = [false; 256];
            for (start, size) in ranges {
                let news = extents.claim(start..start + size);
                for byte in start..start + size {
                    let is_news = news.iter().any(|range| range.contains(&byte));
                    prop_assert_eq!(is_news, !model[usize::try_from(byte).unwrap()]);
                }
                for byte in start..start + size {
                    model[usize::try_from(byte).unwrap()] = true;
                }
            }
            for position in 0..256usize {
                let end = (position..256).find(|&at| !model[at]).unwrap_or(256);
                prop_assert_eq!(extents.end_of_run(position as u64), end as u64);
                let next = (end..256).find(|&at| model[at]).map(|at| at as u64);
                prop_assert_eq!(extents.gap(position as u64), (end as u64, next));
            }
            let ends: Vec<_> = extents.0.iter().collect();
            prop_assert!(ends.windows(2).all(|pair| pair[0].1 < pair[1].0), "disjoint and not adjacent");
        }
    }
}
