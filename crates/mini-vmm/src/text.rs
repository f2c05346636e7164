// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Words of users in messages: on one line, of bounded length, and what they probably meant.

/// The longest word that a message repeats, in characters.
const MAX_WORD: usize = 80;

/// `text` with control characters escaped: it can neither break the line nor drive a terminal.
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

/// `text` in at most `max` characters and the mark for what is left out, which is in its middle: a message's end is
/// what to do.
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

/// A word as messages repeat it.
pub(crate) fn shown(word: &str) -> String {
    shorten(&one_line(word), MAX_WORD)
}

/// At most three of `known` that are spelled like `word`, the nearest first.
pub(crate) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let rated = known.map(|known| {
        let length = word.len().abs_diff(known.len());
        (distance(word, known), length, known)
    });
    let mut near: Vec<_> = rated.filter(|(distance, ..)| *distance <= 2).collect();
    near.sort_unstable();
    near.dedup();
    near.truncate(3);
    near.into_iter().map(|(.., known)| known).collect()
}

/// Edits (insert, remove, replace a byte) between two names, where case does not count and `-`, `_` and `.` are the
/// same; `usize::MAX` for names whose lengths are more than 2 apart.
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
