//! HTTP as a load balancer's probe speaks it: one request over a raw connection, and every byte of the answer.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::Netns;

/// For a server that accepts and then says nothing.
const LIMIT: Duration = Duration::from_secs(10);

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Of the first line.
    pub code: u16,
    /// The other lines of the head, sorted: their order has no meaning.
    pub headers: Vec<String>,
    /// The rest.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Panics
    /// If it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The same without what tells the time: the date, times in a body of JSON, and how long those make it.
    #[must_use]
    pub fn timeless(mut self) -> Self {
        let is_timeless = |line: &String| !line.starts_with("Date: ");
        self.headers.retain(is_timeless);
        let mut parts: Vec<String> = Vec::new();
        for part in self.body.split('"') {
            let is_time = part.len() > 18 && part.starts_with("20") && part.contains('T');
            parts.push(if is_time { "TIME".to_owned() } else { part.to_owned() });
        }
        let body = parts.join("\"");
        if body != self.body {
            self.headers.retain(|line| !line.starts_with("Content-Length: "));
        }
        self.body = body;
        self
    }

    fn parse(text: &str) -> Result<Self> {
        let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("no head in {text:?}"))?;
        let mut lines = head.split("\r\n");
        let first = lines.next().unwrap_or_default();
        let code = first.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let code = code.with_context(|| format!("no code in {first:?}"))?;
        let mut headers: Vec<String> = lines.map(str::to_owned).collect();
        headers.sort();
        Ok(Self { code, headers, body: body.to_owned() })
    }
}

/// Asks for `path` at `at` from inside `netns`.
///
/// # Errors
/// Nobody listens there, or what answers does not speak HTTP.
pub fn get(netns: &Netns, at: SocketAddr, path: &str) -> Result<Answer> {
    ask(netns, at, "GET", path)
}

/// The same with any method.
///
/// # Errors
/// See [`get`].
pub fn ask(netns: &Netns, at: SocketAddr, method: &str, path: &str) -> Result<Answer> {
    netns.run(|| {
        let mut stream =
            TcpStream::connect_timeout(&at, LIMIT).with_context(|| format!("cannot connect to {at}"))?;
        stream.set_read_timeout(Some(LIMIT))?;
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text).with_context(|| format!("{at} broke off"))?;
        Answer::parse(&text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_without_its_times_can_be_compared() {
        let text = |time: &str, date: &str| {
            format!(
                "HTTP/1.1 200 OK\r\nDate: {date}\r\nB: 2\r\nA: 1\r\nContent-Length: 9\r\n\r\n{{\"at\":\"{time}\"}}"
            )
        };
        let one = Answer::parse(&text("2026-01-02T03:04:05.5Z", "Mon")).unwrap();
        let other = Answer::parse(&text("2027-01-02T03:04:05.123456789Z", "Tue")).unwrap();
        assert_eq!((one.code, one.headers.len()), (200, 4));
        assert_eq!(one.clone().timeless(), other.timeless());
        assert_eq!(one.timeless().headers, ["A: 1", "B: 2"]);
        assert!(Answer::parse("nonsense").is_err());
    }
}
