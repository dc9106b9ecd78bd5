//! Exchanges: from a routing key to queues.
//!
//! Knows bindings, not queues: a queue is a [`QueueId`] here. A message goes at most once to a queue, however many
//! bindings lead there.

use std::collections::HashMap;

use super::queue::QueueId;
use crate::transport::topology::{Exchange, ExchangeKind};

/// The declared exchanges. The default exchange, which has no name, is not one of them.
#[derive(Default)]
pub(super) struct Exchanges {
    by_name: HashMap<String, Bound>,
}

impl Exchanges {
    /// Declares an exchange. When it is there with other properties it stays as it is, and the error says how it
    /// differs.
    pub(super) fn declare(&mut self, exchange: &Exchange) -> Result<(), String> {
        let Some(Bound { declared, .. }) = self.by_name.get(&exchange.name) else {
            let bound = Bound {
                declared: exchange.clone(),
                bindings: Bindings::new(exchange.kind),
            };
            self.by_name.insert(exchange.name.clone(), bound);
            return Ok(());
        };
        if declared.kind != exchange.kind {
            let (is, asked) = (declared.kind.as_str(), exchange.kind.as_str());
            return Err(format!("it is there as {is}, not {asked}"));
        }
        if declared.alternate != exchange.alternate {
            let (is, asked) = (&declared.alternate, &exchange.alternate);
            return Err(format!("it is there with alternate-exchange {is:?}, not {asked:?}"));
        }
        Ok(())
    }

    pub(super) fn contains(&self, exchange: &str) -> bool {
        self.by_name.contains_key(exchange)
    }

    /// Binds a queue; again is the same as once. False when there is no such exchange.
    pub(super) fn bind(&mut self, exchange: &str, key: &str, queue: QueueId) -> bool {
        let found = self.by_name.get_mut(exchange);
        found.map(|bound| bound.bindings.insert(key, queue)).is_some()
    }

    /// Takes away every binding of a queue that is gone.
    pub(super) fn forget(&mut self, queue: QueueId) {
        for bound in self.by_name.values_mut() {
            bound.bindings.remove(queue);
        }
    }

    /// The queues a message goes to, each once, over alternate exchanges when its own knows none; `None` when there
    /// is no such exchange.
    pub(super) fn route(&self, exchange: &str, key: &str) -> Option<Vec<QueueId>> {
        let mut bound = self.by_name.get(exchange)?;
        // Alternates may point at each other; more hops than exchanges have seen them all.
        for _ in 0..self.by_name.len() {
            let queues = bound.bindings.matching(key);
            if !queues.is_empty() {
                return Some(queues);
            }
            let alternate = bound.declared.alternate.as_ref();
            match alternate.and_then(|name| self.by_name.get(name)) {
                Some(next) => bound = next,
                None => break,
            }
        }
        Some(Vec::new())
    }
}

struct Bound {
    declared: Exchange,
    bindings: Bindings,
}

enum Bindings {
    Direct(HashMap<String, Vec<QueueId>>),
    Fanout(Vec<QueueId>),
    Topic(Vec<(String, QueueId)>),
}

impl Bindings {
    fn new(kind: ExchangeKind) -> Self {
        match kind {
            ExchangeKind::Direct => Self::Direct(HashMap::new()),
            ExchangeKind::Fanout => Self::Fanout(Vec::new()),
            ExchangeKind::Topic => Self::Topic(Vec::new()),
        }
    }

    fn insert(&mut self, key: &str, queue: QueueId) {
        match self {
            Self::Direct(by_key) => insert(by_key.entry(key.to_owned()).or_default(), queue),
            Self::Fanout(queues) => insert(queues, queue),
            Self::Topic(patterns) => insert(patterns, (key.to_owned(), queue)),
        }
    }

    fn remove(&mut self, queue: QueueId) {
        match self {
            Self::Direct(by_key) => by_key
                .values_mut()
                .for_each(|queues| queues.retain(|bound| *bound != queue)),
            Self::Fanout(queues) => queues.retain(|bound| *bound != queue),
            Self::Topic(patterns) => patterns.retain(|(_, bound)| *bound != queue),
        }
    }

    fn matching(&self, key: &str) -> Vec<QueueId> {
        match self {
            Self::Direct(by_key) => by_key.get(key).cloned().unwrap_or_default(),
            Self::Fanout(queues) => queues.clone(),
            Self::Topic(patterns) => {
                let mut queues = Vec::new();
                for (pattern, queue) in patterns {
                    if topic_matches(pattern, key) {
                        insert(&mut queues, *queue);
                    }
                }
                queues
            }
        }
    }
}

fn insert<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}

/// Words between dots; `*` stands for one word, `#` for any number. Greedy with one step back, as for file patterns:
/// only the last `#` ever has to take one word more.
fn topic_matches(pattern: &str, key: &str) -> bool {
    let (pattern, key) = (words(pattern), words(key));
    let (mut at, mut word) = (0, 0);
    let mut retry: Option<(usize, usize)> = None; // after the last `#`, and the word it takes next
    while word < key.len() {
        match pattern.get(at) {
            Some(&"#") => {
                at += 1;
                retry = Some((at, word));
            }
            Some(&expected) if expected == "*" || expected == key[word] => {
                at += 1;
                word += 1;
            }
            _ => match &mut retry {
                Some((after, taken)) => {
                    *taken += 1;
                    (at, word) = (*after, *taken);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|rest| *rest == "#")
}

/// An empty key has no words, not one empty word.
fn words(key: &str) -> Vec<&str> {
    if key.is_empty() {
        return Vec::new();
    }
    key.split('.').collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_pattern_matches_word_by_word() {
        for (pattern, key, expected) in [
            ("a.b", "a.b", true),
            ("a.b", "a.b.c", false),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*", "a.b.c", false),
            ("*.failed", "p.failed", true),
            ("#", "", true),
            ("#", "a.b.c", true),
            ("*", "", false),
            ("a.#", "a", true),
            ("a.#", "a.b.c", true),
            ("a.#", "b.a", false),
            ("#.c", "a.b.c", true),
            ("#.c", "a.b.c.d", false),
            ("a.#.c.#.e", "a.c.c.d.e", true),
            ("a.#.c.*", "a.c.b.c.d", true),
            ("a.#.c.*", "a.c.b.c", false),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(topic_matches(pattern, key), expected, "{pattern:?} {key:?}");
        }
    }

    #[test]
    fn alternates_in_a_ring_end() {
        let mut exchanges = Exchanges::default();
        for (name, alternate) in [("a", "b"), ("b", "a")] {
            let exchange = Exchange {
                name: name.into(),
                kind: ExchangeKind::Direct,
                alternate: Some(alternate.into()),
            };
            exchanges.declare(&exchange).expect("it is new");
        }
        assert_eq!(exchanges.route("a", "key"), Some(Vec::new()));
    }

    #[test]
    fn two_bindings_to_a_queue_give_it_one_copy() {
        let mut exchanges = Exchanges::default();
        let exchange = Exchange {
            name: "t".into(),
            kind: ExchangeKind::Topic,
            alternate: None,
        };
        exchanges.declare(&exchange).expect("it is new");
        assert!(exchanges.bind("t", "#", QueueId(1)));
        assert!(exchanges.bind("t", "a.*", QueueId(1)));
        assert_eq!(exchanges.route("t", "a.b"), Some(vec![QueueId(1)]));
    }
}
