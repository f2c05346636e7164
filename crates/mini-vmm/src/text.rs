// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! User-supplied words in messages: on one line, of limited length, with suggestions for misspellings.

/// The most characters of a word in a message.
const MAX_WORD: usize = 80;

/// Escapes control characters in `text`, so that it can neither break the line nor control a terminal.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
    }
    line
}

/// Shortens `text` to at most `max` characters plus a mark. The middle is left out, since a message ends with the next
/// step.
pub(crate) fn shorten(text: &str, max: usize) -> String {
    let count = text.chars().count();
    if count <= max {
        return text.to_owned();
    }
    let tail = max / 3;
    let head = text.chars().take(max - tail);
    let tail = text.chars().skip(count - tail);
    head.chain(['…']).chain(tail).collect()
}

/// A word, escaped and shortened for a message.
pub(crate) fn shown(word: &str) -> String {
    shorten(&one_line(word), MAX_WORD)
}

/// At most three of `known` with a similar spelling to `word`, the most similar first: at most two edits, and at most one
/// for each two letters.
pub(crate) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let rated = known.map(|known| {
        let length = word.len().abs_diff(known.len());
        (distance(word, known), length, known)
    });
    let mut near: Vec<_> = rated
        .filter(|(distance, ..)| *distance <= 2.min(word.len() / 2))
        .collect();
    near.sort_unstable();
    near.dedup();
    near.truncate(3);
    near.into_iter().map(|(.., known)| known).collect()
}

/// The edits (insert, remove, replace a byte) between two names. Case is ignored, and `-`, `_` and `.` are equal.
/// `usize::MAX` if their lengths differ by more than 2.
fn distance(a: &str, b: &str) -> usize {
    if a.len().abs_diff(b.len()) > 2 {
        return usize::MAX;
    }
    let plain = |byte| match byte {
        b'-' | b'.' => b'_',
        other => other.to_ascii_lowercase(),
    };
    let [a, b] = [a, b].map(|name| name.bytes().map(plain).collect::<Vec<_>>());
    strsim::generic_levenshtein(&a, &b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_short_and_harmless() {
        assert_eq!(shown("grüße"), "grüße");
        assert_eq!(shown("a\x1b[31m\nb"), "a\\u{1b}[31m\\nb");
        let long = shown(&"é".repeat(1 << 20));
        assert_eq!(long.chars().count(), MAX_WORD + 1);
        assert!(long.starts_with('é') && long.ends_with('é'));
        assert_eq!(shorten("0123456789", 6), "0123…89");
        assert_eq!(shorten("012345", 6), "012345");
    }

    #[test]
    fn short_words_have_near_neighbours_only() {
        let known = || ["net", "rng", "cpus", "kernel"].into_iter();
        assert_eq!(nearest("nte", known()), [""; 0]);
        assert_eq!(nearest("mem", known()), [""; 0]);
        assert_eq!(nearest("nets", known()), ["net"]);
        assert_eq!(nearest("cpu", known()), ["cpus"]);
        assert_eq!(nearest("krenel", known()), ["kernel"]);
    }

    #[test]
    fn distance_counts_edits() {
        for (a, b, edits) in [
            ("", "", 0),
            ("avx2", "avx2", 0),
            ("AVX2", "avx2", 0),
            ("sse4-1", "sse4_1", 0),
            ("sse4.1", "sse4_1", 0),
            ("axv2", "avx2", 2),
            ("avx", "avx2", 1),
            ("abc", "xyz", 3),
        ] {
            assert_eq!(distance(a, b), edits, "{a} {b}");
        }
        assert_eq!(distance("a", "abcdef"), usize::MAX);
    }
}
