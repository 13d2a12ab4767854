//! What the demo prints, and how it asks bpftool.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_common::abi::{Addr, Proto};
use serde_json::Value;

/// Why writing to a String is never an error.
const FITS: &str = "a String takes any text";

/// Steps with what was expected and what was seen.
#[derive(Debug, Default)]
pub struct Report {
    steps: Vec<Step>,
}

#[derive(Debug)]
struct Step {
    what: String,
    expected: String,
    seen: String,
    passed: bool,
}

impl Report {
    /// A step whose words must be exactly the expected ones.
    pub fn step(&mut self, what: &str, expected: &str, seen: String) {
        let passed = seen == expected;
        self.claim(what, expected, seen, passed);
    }

    /// A step that was judged by other means. It is printed at once.
    pub fn claim(&mut self, what: &str, expected: &str, seen: String, passed: bool) {
        let step = Step { what: what.to_owned(), expected: expected.to_owned(), seen, passed };
        println!("{} {}: {}", mark(passed), step.what, step.seen);
        self.steps.push(step);
    }

    /// Number of steps.
    pub const fn len(&self) -> usize {
        self.steps.len()
    }

    /// No step yet.
    pub const fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Steps that went as expected.
    pub fn passed(&self) -> usize {
        self.steps.iter().filter(|step| step.passed).count()
    }

    /// Every step went as expected.
    pub fn all_passed(&self) -> bool {
        self.passed() == self.len()
    }

    /// All steps, one below the other.
    pub fn table(&self) -> String {
        let mut text = String::from("\n");
        for (number, step) in (1..).zip(&self.steps) {
            // Writing to a String cannot fail.
            writeln!(text, "{} {number:>2}. {}", mark(step.passed), step.what).expect(FITS);
            writeln!(text, "         expected  {}", step.expected).expect(FITS);
            writeln!(text, "         seen      {}", step.seen).expect(FITS);
        }
        text.push('\n');
        text
    }
}

const fn mark(passed: bool) -> &'static str {
    if passed { "[ok]  " } else { "[FAIL]" }
}

/// A Service and its slice, as a person would write them.
pub fn manifest(name: &str, cluster_ip: &str, port: u16, target_port: u16, endpoints: &[IpAddr]) -> String {
    let mut text = format!(
        "apiVersion: v1\n\
         kind: Service\n\
         metadata: {{name: {name}, namespace: default}}\n\
         spec:\n\
         \x20 clusterIP: {cluster_ip}\n\
         \x20 clusterIPs: [{cluster_ip}]\n\
         \x20 ipFamilies: [IPv4]\n\
         \x20 ports: [{{name: main, protocol: TCP, port: {port}}}]\n\
         ---\n\
         apiVersion: discovery.k8s.io/v1\n\
         kind: EndpointSlice\n\
         metadata:\n\
         \x20 name: {name}-1\n\
         \x20 namespace: default\n\
         \x20 labels: {{kubernetes.io/service-name: {name}}}\n\
         addressType: IPv4\n\
         ports: [{{name: main, protocol: TCP, port: {target_port}}}]\n\
         endpoints:\n"
    );
    for addr in endpoints {
        writeln!(text, "- {{addresses: [{addr}], conditions: {{ready: true}}}}").expect(FITS);
    }
    if endpoints.is_empty() {
        text = text.replace("endpoints:\n", "endpoints: []\n");
    }
    text
}

/// bpftool on the pinned maps of one agent.
#[derive(Debug)]
pub struct Bpftool {
    maps: PathBuf,
}

impl Bpftool {
    /// `maps` is the folder of the pinned maps.
    pub const fn new(maps: PathBuf) -> Self {
        Self { maps }
    }

    /// Follows a TCP frontend to its backends: two look-ups and one dump, each printed as it could be typed.
    ///
    /// # Errors
    /// What bpftool says, or what its output lacks.
    pub fn follow(&self, frontend: SocketAddr) -> Result<Vec<String>> {
        let owner = self.lookup("lb_frontends", &frontend_key(frontend))?;
        let service = number(&owner["service"]["index"])?;
        println!("  -> service {service}");
        let run = &self.lookup("lb_services", &u32::try_from(service)?.to_ne_bytes())?["cluster"];
        let (base, count) = (number(&run["base"])?, number(&run["count"])?);
        println!("  -> slots {base} to {}", base + count - 1);
        let slots = Self::run(&["map", "dump", "pinned", &self.path("lb_slots")])?;
        let slots = slots.as_array().context("bpftool prints a list of slots")?;
        let mut backends = Vec::new();
        for slot in slots {
            let index = number(&slot["formatted"]["key"])?;
            if (base..base + count).contains(&index) {
                backends.push(backend(&slot["formatted"]["value"])?);
            }
        }
        backends.sort_unstable();
        println!("  -> {}", backends.join(" "));
        Ok(backends)
    }

    fn path(&self, map: &str) -> String {
        self.maps.join(map).display().to_string()
    }

    fn lookup(&self, map: &str, key: &[u8]) -> Result<Value> {
        let path = self.path(map);
        let mut args = vec!["map", "lookup", "pinned", &path, "key", "hex"];
        let bytes: Vec<String> = key.iter().map(|byte| format!("{byte:02x}")).collect();
        args.extend(bytes.iter().map(String::as_str));
        let found = Self::run(&args)?;
        Ok(found["formatted"]["value"].clone())
    }

    fn run(args: &[&str]) -> Result<Value> {
        println!("  bpftool {}", args.join(" "));
        let output = Command::new("bpftool").arg("-j").args(args).output().context("cannot run bpftool")?;
        if !output.status.success() {
            bail!("bpftool {}: {}", args.join(" "), String::from_utf8_lossy(&output.stdout));
        }
        serde_json::from_slice(&output.stdout).context("bpftool prints JSON")
    }
}

/// Address, port and protocol of a TCP frontend, and padding.
fn frontend_key(at: SocketAddr) -> Vec<u8> {
    let mut key = Addr::from(at.ip()).octets.to_vec();
    key.extend(at.port().to_ne_bytes());
    key.extend([Proto::TCP.number, 0, 0, 0, 0, 0]);
    key
}

fn number(value: &Value) -> Result<u64> {
    value.as_u64().with_context(|| format!("expected a number, bpftool printed {value}"))
}

/// Address and port of a printed slot.
fn backend(slot: &Value) -> Result<String> {
    let octets = slot["addr"]["octets"].as_array().context("a slot has an address")?;
    let bytes: Vec<u8> =
        octets.iter().map(|octet| Ok(u8::try_from(number(octet)?)?)).collect::<Result<_>>()?;
    ensure!(bytes.len() == 16, "an address has 16 bytes");
    let mut addr = Addr::ANY_V6;
    addr.octets.copy_from_slice(&bytes);
    let port = u16::try_from(number(&slot["port"])?)?;
    Ok(SocketAddr::new(addr.into(), port).to_string())
}
