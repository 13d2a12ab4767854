//! Small changes to a history that leave most of it readable: bytes changed at random rarely say anything new.

/// Numbers at the end of a range, and some that objects have in common.
const NUMBERS: [&str; 12] = [
    "0",
    "-1",
    "1",
    "80",
    "30080",
    "65535",
    "65536",
    "2147483647",
    "-2147483648",
    "18446744073709551616",
    "0.5",
    "1e400",
];

/// Texts that mean something in some field.
const TEXTS: [&str; 22] = [
    "",
    "None",
    "web",
    "default",
    "kubernetes",
    "node-1",
    "a",
    "UDP",
    "SCTP",
    "IPv4",
    "IPv6",
    "Local",
    "NodePort",
    "LoadBalancer",
    "ClientIP",
    "2025-01-01T00:00:00Z",
    "10.96.0.1",
    "10.1.0.1",
    "192.0.2.1",
    "::",
    "fd00:96::1",
    "0.0.0.0/0",
];

/// Lines that are no object: a pass, a restart, and what is neither.
const LINES: [&str; 4] = ["", "!", "{", "-"];

/// The history with one change. Equal choices give equal changes; lines come from the history, or from `others`.
#[must_use]
pub fn spoil(history: &[u8], others: &[&[u8]], choice: [u32; 4]) -> Vec<u8> {
    let [what, from, to, value] = choice;
    let mut lines: Vec<Vec<u8>> = lines(history).map(<[u8]>::to_vec).collect();
    let (from, to) = (pick(lines.len(), from), pick(lines.len(), to));
    match what % 16 {
        0 => flip(&mut lines[from], value),
        1 => drop(lines.remove(from)),
        2 | 3 => lines.swap(from, to),
        4 | 5 => {
            let copy = lines[from].clone();
            lines.insert(to, copy);
        }
        6 | 7 => {
            let known: Vec<&[u8]> = others.iter().flat_map(|other| self::lines(other)).collect();
            let line = if known.is_empty() { lines[from].clone() } else { of(&known, value).to_vec() };
            lines.insert(to, line);
        }
        8 => lines.insert(to, of(&LINES, value).as_bytes().to_vec()),
        9 => gone(&mut lines, from, to),
        10..=12 => lines[from] = with_number(&lines[from], value),
        _ => lines[from] = with_text(&lines[from], value),
    }
    lines.join(&b'\n')
}

fn lines(history: &[u8]) -> impl Iterator<Item = &[u8]> {
    history.split(|byte| *byte == b'\n')
}

/// A place in something of this length, which is not empty.
const fn pick(len: usize, choice: u32) -> usize {
    choice as usize % len
}

fn of<T: Copy>(list: &[T], choice: u32) -> T {
    list[pick(list.len(), choice)]
}

/// A bit of one byte is another one.
fn flip(line: &mut [u8], choice: u32) {
    let bit = choice % 8;
    if !line.is_empty() {
        line[pick(line.len(), choice / 8)] ^= 1 << bit;
    }
}

/// The object of a line disappears at another one.
fn gone(lines: &mut Vec<Vec<u8>>, from: usize, to: usize) {
    let line = if lines[from].starts_with(b"{") { [b"-", &lines[from][..]].concat() } else { Vec::new() };
    lines.insert(to, line);
}

/// One of the numbers is another one.
fn with_number(line: &[u8], choice: u32) -> Vec<u8> {
    let mut parts: Vec<&[u8]> =
        line.chunk_by(|one, next| one.is_ascii_digit() == next.is_ascii_digit()).collect();
    let numbers: Vec<usize> = (0..parts.len()).filter(|part| parts[*part][0].is_ascii_digit()).collect();
    if !numbers.is_empty() {
        parts[of(&numbers, choice / 64)] = of(&NUMBERS, choice).as_bytes();
    }
    parts.concat()
}

/// One of the texts, names of fields among them, is another one: a word of the API, or another text of the line.
fn with_text(line: &[u8], choice: u32) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = line.split(|byte| *byte == b'"').collect();
    let texts = (parts.len() - 1) / 2;
    if texts != 0 {
        let own = |choice| pick(texts, choice) * 2 + 1;
        let at = own(choice / 64);
        parts[at] = match choice % 64 {
            other @ ..16 => parts[own(choice / 64 + other)],
            word => of(&TEXTS, word).as_bytes(),
        };
    }
    parts.join(&b'"')
}
