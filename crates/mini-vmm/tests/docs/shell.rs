// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Parses command lines in Markdown pages, as far as the pages use shell syntax.

use std::collections::VecDeque;
use std::mem::take;

/// A command line of a page, and the output lines that the page shows below it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Line {
    pub text: String,
    pub output: Vec<String>,
}

/// The command lines of a page: those after a `$` in its `console` blocks, and all lines of its `sh` blocks.
pub fn lines(page: &str) -> Vec<Line> {
    let mut found: Vec<Line> = Vec::new();
    let mut block = None;
    for line in page.lines() {
        if let Some(info) = line.strip_prefix("```") {
            // The fence at a block's end names no language.
            block = (!info.is_empty()).then_some(info);
            continue;
        }
        let command = match block {
            Some("console") => line.strip_prefix("$ "),
            Some("sh") => Some(line),
            _ => continue,
        };
        match (command, found.last_mut()) {
            (Some(text), _) => found.push(Line {
                text: text.to_owned(),
                output: Vec::new(),
            }),
            (None, Some(last)) => last.output.push(line.to_owned()),
            (None, None) => {}
        }
    }
    found
}

/// One call of a program: its words, the destination of its standard output, and the reader of that.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Call {
    pub words: Vec<String>,
    /// `> FILE`
    pub file: Option<String>,
    /// `| grep WORD`
    pub grep: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Operator(char),
}

/// Words and operators; comments are left out.
fn tokens(text: &str) -> Vec<Token> {
    let mut found = Vec::new();
    let mut word: Option<String> = None;
    let mut chars: VecDeque<char> = text.chars().collect();
    let until = |chars: &mut VecDeque<char>, end: char| -> String {
        let rest = std::iter::from_fn(|| chars.pop_front());
        rest.take_while(|c| *c != end).collect()
    };
    while let Some(c) = chars.pop_front() {
        match c {
            '#' if word.is_none() => break,
            '"' | '\'' => word.get_or_insert_default().push_str(&until(&mut chars, c)),
            // The shell replaces it with a path.
            '<' if chars.front() == Some(&'(') => {
                until(&mut chars, ')');
                word.get_or_insert_default().push_str("/dev/fd/63");
            }
            ' ' | ';' | '&' | '|' | '>' => {
                found.extend(word.take().map(Token::Word));
                found.extend((c != ' ').then_some(Token::Operator(c)));
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    found.extend(word.map(Token::Word));
    found
}

/// The calls of a command line, without leading `NAME=value`.
pub fn calls(text: &str) -> Vec<Call> {
    let (mut found, mut call) = (Vec::new(), Call::default());
    let mut before = ' ';
    for token in tokens(text) {
        match (token, before) {
            (Token::Word(word), '>') => {
                call.file = Some(word);
                before = ' ';
            }
            (Token::Word(word), '|') if word == "grep" => before = 'g',
            (Token::Word(word), 'g') => {
                call.grep = Some(word);
                before = ' ';
            }
            (Token::Word(word), _) => {
                if before == '|' {
                    found.push(take(&mut call));
                }
                before = ' ';
                if !(call.words.is_empty() && word.contains('=')) {
                    call.words.push(word);
                }
            }
            (Token::Operator(operator @ ('>' | '|')), _) => before = operator,
            (Token::Operator(_), _) => {
                found.push(take(&mut call));
                before = ' ';
            }
        }
    }
    found.push(call);
    found.retain(|call| !call.words.is_empty());
    found
}

#[test]
fn lines_have_what_stands_below_them() {
    let page = "$ no\n```console\n$ a b\nsays\n$ c\n```\n```sh\nd\n```\n```text\n$ no\n```\n";
    let found: Vec<_> = lines(page)
        .into_iter()
        .map(|line| (line.text, line.output.concat()))
        .collect();
    let expected = [("a b", "says"), ("c", ""), ("d", "")];
    assert_eq!(
        found,
        expected.map(|(text, output)| (text.to_owned(), output.to_owned()))
    );
}

#[test]
fn calls_are_those_of_a_shell() {
    let call = |words: &[&str], file: Option<&str>, grep: Option<&str>| Call {
        words: words.iter().map(|word| (*word).to_owned()).collect(),
        file: file.map(str::to_owned),
        grep: grep.map(str::to_owned),
    };
    assert_eq!(
        calls("A=1 vm --x \"b  c\" > f; vm <(zcat k) && vm '#' | grep x  # not | this"),
        [
            call(&["vm", "--x", "b  c"], Some("f"), None),
            call(&["vm", "/dev/fd/63"], None, None),
            call(&["vm", "#"], None, Some("x")),
        ]
    );
    assert_eq!(
        calls("a | b; # c"),
        [call(&["a"], None, None), call(&["b"], None, None)]
    );
}
