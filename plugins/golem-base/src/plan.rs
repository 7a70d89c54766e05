//! What has to be done to come to one entity that says what it should and lasts long enough. Pure.

use crate::{
    entry,
    node::Entity,
    operations::{Annotations, Key},
};

/// The chain makes a block about so often.
pub const SECONDS_PER_BLOCK: u64 = 2;

/// One of our entities, or all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// It is as it should be.
    Nothing { key: Key, left_blocks: u64 },
    /// It says what it should, and would end soon.
    Extend { key: Key, blocks: u64 },
    /// It says something else.
    Update { key: Key },
    /// There is none, or more than one: these are deleted, and one is made.
    Replace { keys: Vec<Key> },
}

/// How long an entity is to last when it is made, changed or prolonged: so many blocks as twice the interval has seconds.
pub fn lifetime_blocks(interval_seconds: u32) -> u64 {
    u64::from(interval_seconds).saturating_mul(2).max(1)
}

/// Decides.
pub fn next(ours: &[Entity], wanted: &Annotations, now_block: u64, interval_seconds: u32) -> Step {
    let [entity] = ours else {
        return Step::Replace { keys: ours.iter().map(|entity| entity.key).collect() };
    };
    let key = entity.key;
    if !entry::says(entity, wanted) {
        return Step::Update { key };
    }
    let left_blocks = entity.expires_at_block.saturating_sub(now_block);
    let lifetime_blocks = lifetime_blocks(interval_seconds);
    if left_blocks == 0 {
        // It ends with this block or the next, and cannot be relied on to be prolonged.
        return Step::Update { key };
    }
    if left_blocks < least_blocks(interval_seconds) {
        // Another one may have prolonged it, or the interval may have been another one: it lasts its time from now on.
        return Step::Extend { key, blocks: lifetime_blocks.saturating_sub(left_blocks).max(1) };
    }
    Step::Nothing { key, left_blocks }
}

/// Below this an entity is prolonged: a fifth of its lifetime, and never so little that it would be gone before it is looked
/// after again, with a quarter of the interval to spare for a node that is down.
fn least_blocks(interval_seconds: u32) -> u64 {
    let until_next = u64::from(interval_seconds) * 5 / 4 / SECONDS_PER_BLOCK;
    (lifetime_blocks(interval_seconds) / 5).max(until_next)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: u32 = 3600;

    fn wanted(cpu: u64) -> Annotations {
        Annotations {
            strings: vec![("golem_type".into(), "provider".into())],
            numbers: vec![("golem_cpu".into(), cpu)],
        }
    }

    fn entity(key: u8, cpu: u64, expires_at_block: u64) -> Entity {
        let annotations = wanted(cpu);
        Entity {
            key: [key; 32],
            owner: String::new(),
            expires_at_block,
            strings: annotations.strings.into_iter().collect(),
            numbers: annotations.numbers.into_iter().collect(),
        }
    }

    #[test]
    fn one_entity_comes_of_none_one_and_several() {
        let next = |ours: &[Entity]| next(ours, &wanted(4), 1000, INTERVAL);
        assert_eq!(lifetime_blocks(INTERVAL), 7200);
        assert_eq!(next(&[]), Step::Replace { keys: vec![] });
        let fresh = entity(1, 4, 8200);
        assert_eq!(
            next(std::slice::from_ref(&fresh)),
            Step::Nothing { key: [1; 32], left_blocks: 7200 }
        );
        assert_eq!(next(&[entity(1, 3, 8200)]), Step::Update { key: [1; 32] });
        let both = Step::Replace { keys: vec![[1; 32], [2; 32]] };
        assert_eq!(next(&[fresh, entity(2, 4, 8200)]), both);
    }

    #[test]
    fn an_entity_is_prolonged_to_its_whole_lifetime_before_it_would_end_unseen() {
        let left = |blocks: u64| next(&[entity(1, 4, 1000 + blocks)], &wanted(4), 1000, INTERVAL);
        assert_eq!(left(2250), Step::Nothing { key: [1; 32], left_blocks: 2250 });
        assert_eq!(left(2249), Step::Extend { key: [1; 32], blocks: 4951 });
        assert_eq!(left(1), Step::Extend { key: [1; 32], blocks: 7199 });
        assert_eq!(left(0), Step::Update { key: [1; 32] });
        // What is left alone lasts beyond the next look at it.
        for interval in [1, 2, 5, 60, 3600, 86_400] {
            for blocks in 1..lifetime_blocks(interval).min(20_000) {
                let step = next(&[entity(1, 4, blocks)], &wanted(4), 0, interval);
                if let Step::Nothing { left_blocks, .. } = step {
                    assert!(left_blocks * SECONDS_PER_BLOCK >= u64::from(interval), "{blocks}");
                    assert!(left_blocks >= lifetime_blocks(interval) / 5);
                }
            }
        }
    }
}
