// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The bytes of one connection, both ways, without its socket.

use std::time::{Duration, Instant};

use super::http::{self, Fault, Parsed};
use super::server::Handler;

/// How long a client may take to send a request that it has begun, or to read its answers.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Who has read this much gets the whole time anew.
const PROGRESS: usize = 4 << 10;

/// More requests are not handled while this many bytes of answers are unread.
const MAX_UNREAD: usize = 64 << 10;

/// What was received and not handled, and what was answered and not sent.
#[derive(Debug)]
pub(super) struct Connection<H: Handler> {
    input: Vec<u8>,
    output: Vec<u8>,
    /// The request whose answer comes later, and whether the connection then stays. Requests after it wait.
    awaited: Option<(H::Awaited, bool)>,
    /// Whether the client was told to send its body.
    is_told: bool,
    /// The client sends no more.
    has_ended: bool,
    /// No more requests are handled. The connection ends when its output is sent.
    is_closing: bool,
    is_expired: bool,
    /// When it ends unless the client goes on.
    deadline: Option<Instant>,
    /// How much was sent since the client got its time.
    progress: usize,
}

impl<H: Handler> Default for Connection<H> {
    fn default() -> Self {
        Connection {
            input: Vec::new(),
            output: Vec::new(),
            awaited: None,
            is_told: false,
            has_ended: false,
            is_closing: false,
            is_expired: false,
            deadline: None,
            progress: 0,
        }
    }
}

impl<H: Handler> Connection<H> {
    /// Whether the client may send something now. If not, it has answers to read, or to wait for.
    pub fn wants_input(&self) -> bool {
        !self.is_closing && !self.has_ended && self.output.is_empty() && self.awaited.is_none()
    }

    /// What to send.
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// Whether an answer comes later.
    pub fn is_waiting(&self) -> bool {
        self.awaited.is_some()
    }

    /// Whether everything is done, and no more requests come.
    pub fn is_over(&self) -> bool {
        self.is_closing && self.output.is_empty()
    }

    /// When the client has been too slow. `None` while nothing is expected of it.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Takes `bytes` from the client, and handles the requests in them.
    pub fn receive(&mut self, bytes: &[u8], max_body: usize, handler: &mut H) {
        self.input.extend_from_slice(bytes);
        self.go_on(max_body, handler);
    }

    /// The client sends no more. Its requests are still answered.
    pub fn end_input(&mut self, max_body: usize, handler: &mut H) {
        self.has_ended = true;
        if self.output.is_empty() {
            self.go_on(max_body, handler);
        }
    }

    /// Takes the answer that comes later if it is there, and handles requests that waited for it.
    pub fn settle(&mut self, max_body: usize, handler: &mut H) {
        let Some((awaited, stays)) = &mut self.awaited else {
            return;
        };
        let Some(answer) = handler.take(awaited) else {
            return;
        };
        http::write(&mut self.output, &answer, *stays);
        self.is_closing = !*stays;
        self.awaited = None;
        self.go_on(max_body, handler);
    }

    /// Notes that `count` bytes were sent, and handles requests that waited for that.
    pub fn sent(&mut self, count: usize, max_body: usize, handler: &mut H) {
        self.output.drain(..count);
        self.progress += count;
        if self.output.is_empty() || self.progress >= PROGRESS {
            self.deadline = None;
            self.progress = 0;
        }
        if self.output.is_empty() {
            self.output.shrink_to(4 << 10);
            self.go_on(max_body, handler);
        }
    }

    /// Gives its client time from `now` on for what is expected of it. If it was too slow, ends the connection: with an
    /// answer if a request is incomplete.
    pub fn watch(&mut self, now: Instant) {
        let has_unread = !self.output.is_empty();
        if !has_unread && (self.input.is_empty() || self.is_waiting()) {
            self.deadline = None;
            return;
        }
        if *self.deadline.get_or_insert(now + PATIENCE) > now {
            return;
        }
        self.output.clear();
        self.is_closing = true;
        if !has_unread {
            let seconds = PATIENCE.as_secs();
            let message =
                format!("the request took longer than {seconds} s to arrive; send it at once");
            http::write(
                &mut self.output,
                &Err(Fault::with_status(408, message)),
                false,
            );
        }
        self.is_expired = true;
    }

    /// Whether its client was too slow: then it ends even if the output can't be sent.
    pub fn is_expired(&self) -> bool {
        self.is_expired
    }

    /// Handles the requests that have arrived.
    fn go_on(&mut self, max_body: usize, handler: &mut H) {
        let (mut handled, mut requests) = (0, 0);
        while !self.is_closing && self.awaited.is_none() && self.output.len() <= MAX_UNREAD {
            // Empty lines before a request are ignored: RFC 9112, section 2.2.
            let rest = &self.input[handled..];
            let is_line_end = |byte: &&u8| matches!(byte, b'\r' | b'\n');
            handled += rest.iter().take_while(is_line_end).count();
            match http::parse(&self.input[handled..], max_body) {
                Parsed::Whole(request, size) => {
                    // The client of a HEAD takes the answer's body for its next answer.
                    let stays = request.stays && request.method != "HEAD";
                    match handler.handle(request) {
                        Ok(answer) => {
                            http::write(&mut self.output, &answer, stays);
                            self.is_closing = !stays;
                        }
                        Err(awaited) => self.awaited = Some((awaited, stays)),
                    }
                    self.is_told = false;
                    handled += size;
                    requests += 1;
                }
                Parsed::Part { .. } if self.has_ended => {
                    if handled < self.input.len() {
                        let message =
                            "the connection ended within a request; send the whole request";
                        http::write(&mut self.output, &Err(Fault::new(message)), false);
                    }
                    self.is_closing = true;
                }
                Parsed::Part { awaits_continue } => {
                    if awaits_continue && !self.is_told {
                        self.output.extend(http::CONTINUE);
                        self.is_told = true;
                    }
                    break;
                }
                Parsed::Bad(fault) => {
                    http::write(&mut self.output, &Err(fault), false);
                    self.is_closing = true;
                }
            }
        }
        self.input.drain(..handled);
        if self.is_closing {
            self.input = Vec::new();
        }
        if requests > 0 || self.input.is_empty() {
            self.input.shrink_to(4 << 10);
        }
        // Each request has its own time.
        if requests > 0 {
            self.deadline = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::http::{Answer, Request};

    const MAX_BODY: usize = 100;

    /// Answers with the path, or a fault. What `/later` waits for comes from outside.
    #[derive(Debug, Default)]
    struct Echo(Option<Answer>);

    impl Handler for Echo {
        type Awaited = ();

        fn handle(&mut self, request: Request<'_>) -> Result<Answer, ()> {
            match request.path {
                "/later" => Err(()),
                "/none" => Ok(Ok(None)),
                path => Ok(Err(Fault::with_status(404, path))),
            }
        }

        fn take(&mut self, (): &mut ()) -> Option<Answer> {
            self.0.take()
        }
    }

    struct Client {
        connection: Connection<Echo>,
        echo: Echo,
        now: Instant,
    }

    impl Client {
        fn new() -> Self {
            Client {
                connection: Connection::default(),
                echo: Echo::default(),
                now: Instant::now(),
            }
        }

        /// What the server does after each event.
        fn watch(&mut self) {
            self.connection.settle(MAX_BODY, &mut self.echo);
            self.connection.watch(self.now);
        }

        fn send(&mut self, bytes: &[u8]) {
            self.connection.receive(bytes, MAX_BODY, &mut self.echo);
            self.watch();
        }

        fn end(&mut self) {
            self.connection.end_input(MAX_BODY, &mut self.echo);
            self.watch();
        }

        fn read(&mut self, count: usize) -> String {
            let bytes = self.connection.output()[..count].to_vec();
            self.connection.sent(count, MAX_BODY, &mut self.echo);
            self.watch();
            String::from_utf8(bytes).unwrap()
        }

        fn read_all(&mut self) -> String {
            self.read(self.connection.output().len())
        }
    }

    #[test]
    fn requests_in_one_piece_or_byte_by_byte_have_the_same_answers() {
        let requests = b"GET /a HTTP/1.1\r\n\r\nPUT /none HTTP/1.0\r\nContent-Length: 3\r\n\r\n{ }GET /b HTTP/1.1\r\n\r\n";
        let mut at_once = Client::new();
        at_once.send(requests);
        let expected = at_once.read_all();
        let order = ["\"/a\"", "204", "\"/b\""].map(|answer| expected.find(answer).unwrap());
        assert!(order.is_sorted(), "{expected}");
        let mut slow = Client::new();
        let mut answers = String::new();
        for byte in requests {
            slow.send(&[*byte]);
            answers += &slow.read_all();
        }
        assert_eq!(answers, expected);
        assert_eq!(slow.connection.deadline(), None);
    }

    #[test]
    fn a_client_that_reads_on_has_time_and_one_that_nibbles_has_not() {
        let requests = b"GET /a HTTP/1.1\r\n\r\n".repeat(1000);
        let pause = PATIENCE - Duration::from_secs(1);
        let mut client = Client::new();
        client.send(&requests);
        let mut pauses = 0;
        while !client.connection.output().is_empty() {
            client.now += pause;
            client.read(client.connection.output().len().min(PROGRESS));
            pauses += 1;
        }
        assert!(pauses > 3 && !client.connection.is_expired(), "{pauses}");

        let mut client = Client::new();
        client.send(&requests);
        for _ in 0..2 {
            client.now += pause;
            client.read(1);
        }
        assert!(client.connection.is_expired());
    }

    #[test]
    fn a_client_that_reads_nothing_is_not_read_and_costs_little() {
        let mut client = Client::new();
        let requests = b"GET /a HTTP/1.1\r\n\r\n".repeat(10_000);
        client.send(&requests);
        let unread = client.connection.output().len();
        assert!(unread > MAX_UNREAD && unread < 2 * MAX_UNREAD, "{unread}");
        assert!(!client.connection.wants_input());
        client.end();
        let mut answers = 0;
        while !client.connection.is_over() {
            answers += client.read_all().matches("404").count();
        }
        assert_eq!(answers, 10_000);
    }

    #[test]
    fn each_request_has_its_own_time() {
        let mut client = Client::new();
        client.send(b"GET /a HTTP/1.1\r\n");
        let first = client.connection.deadline().unwrap();
        client.now += PATIENCE / 2;
        client.send(b"X: y\r\n");
        assert_eq!(
            client.connection.deadline(),
            Some(first),
            "bytes buy no time"
        );
        client.send(b"\r\nGET");
        client.read_all();
        assert_eq!(client.connection.deadline(), Some(client.now + PATIENCE));
        client.send(b" / HTTP/1.1\r\n\r\n");
        client.read_all();
        assert_eq!(
            client.connection.deadline(),
            None,
            "an idle client has time"
        );
    }

    #[test]
    fn requests_wait_behind_an_answer_that_comes_later() {
        let mut client = Client::new();
        client.send(b"GET /later HTTP/1.1\r\n\r\nGET /a HTTP/1.1\r\n\r\nGET /b");
        assert!(client.connection.is_waiting() && !client.connection.wants_input());
        assert_eq!(client.read_all(), "");
        client.now += 10 * PATIENCE;
        client.watch();
        assert!(!client.connection.is_over(), "its client is not late");
        client.echo.0 = Some(Ok(None));
        client.watch();
        let answers = client.read_all();
        let order = ["204", "\"/a\""].map(|answer| answers.find(answer).unwrap());
        assert!(order.is_sorted(), "{answers}");
        assert_eq!(client.connection.deadline(), Some(client.now + PATIENCE));
        client.send(b" HTTP/1.1\r\n\r\nGET /later HTTP/1.1\r\nConnection: close\r\n\r\n");
        client.end();
        client.echo.0 = Some(Err(Fault::new("no")));
        client.read_all();
        assert!(client.read_all().contains("no") && client.connection.is_over());
    }

    #[test]
    fn empty_lines_between_requests_are_nothing() {
        let mut client = Client::new();
        client.send(b"\r\nGET /a HTTP/1.1\r\n\r\n\r\n");
        assert_eq!(client.read_all().matches("404").count(), 1);
        assert_eq!(client.connection.deadline(), None);
        client.send(b"\r\n");
        assert_eq!(client.connection.deadline(), None);
        client.send(b"GET /a HTTP/1.1\r\n\r\n");
        let unread = client.connection.deadline();
        client.now += PATIENCE / 2;
        client.send(b"\r\n");
        assert_eq!(client.connection.deadline(), unread, "lines buy no time");
        client.read_all();
        client.end();
        assert!(client.connection.is_over() && client.connection.output().is_empty());
    }

    #[test]
    fn a_head_ends_the_connection() {
        let mut client = Client::new();
        client.send(b"HEAD /a HTTP/1.1\r\n\r\nGET /a HTTP/1.1\r\n\r\n");
        let answers = client.read_all();
        assert_eq!(answers.matches("HTTP/1.1").count(), 1, "{answers}");
        assert!(client.connection.is_over());
    }

    #[test]
    fn slow_clients_are_told_if_they_can_read_it() {
        let mut sender = Client::new();
        sender.send(b"GET ");
        let before = sender.connection.deadline().unwrap() - Duration::from_nanos(1);
        sender.connection.watch(before);
        assert!(sender.connection.wants_input());
        sender.connection.watch(before + Duration::from_nanos(1));
        assert!(sender.read_all().starts_with("HTTP/1.1 408 "));
        assert!(sender.connection.is_over());

        let mut reader = Client::new();
        reader.send(b"GET /a HTTP/1.1\r\n\r\n");
        reader.read(1);
        let deadline = reader.connection.deadline().unwrap();
        reader.connection.watch(deadline);
        assert!(reader.connection.is_over());
    }

    #[test]
    fn nothing_follows_garbage_or_a_close() {
        for (bytes, answer) in [
            (&b"\0\0\0\0GET /a HTTP/1.1\r\n\r\n"[..], "400"),
            (
                b"GET /a HTTP/1.1\r\nConnection: close\r\n\r\nGET /b HTTP/1.1\r\n\r\n",
                "404",
            ),
        ] {
            let mut client = Client::new();
            client.send(bytes);
            let answers = client.read_all();
            assert_eq!(answers.matches("HTTP/1.1").count(), 1, "{answers}");
            assert!(answers.contains(answer) && answers.contains("Connection: close"));
            assert!(client.connection.is_over());
        }
    }

    #[test]
    fn the_end_of_the_input_is_the_end_after_all_answers() {
        let mut client = Client::new();
        client.send(b"GET /a HTTP/1.1\r\n\r\n");
        client.end();
        assert!(!client.connection.is_over());
        assert!(client.read_all().contains("404"));
        assert!(client.connection.is_over());

        let mut cut = Client::new();
        cut.send(b"GET /a HT");
        cut.end();
        assert!(cut.read_all().contains("within a request"));
        assert!(cut.connection.is_over());
    }

    #[test]
    fn a_waiting_client_is_told_once_to_go_on() {
        let mut client = Client::new();
        client.send(b"PUT /none HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
        assert_eq!(client.read_all().as_bytes(), http::CONTINUE);
        client.send(b"{");
        assert_eq!(client.read_all(), "");
        client.send(b"}");
        assert!(client.read_all().starts_with("HTTP/1.1 204 "));
    }
}
