//! The agent under test: `lb-agent run` on a node, fed from a folder of manifests or from an API server.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::{self, File},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::{Bpffs, Node, Process, binary, names, wait_for};

/// Long enough for a slow machine; reached only by failures.
const LIMIT: Duration = Duration::from_mins(3);

/// Ending of the name of a [`Home`]'s folder.
const FOLDER: &str = "home";

/// What outlives an agent on a node: pins, manifests, logs.
#[derive(Debug)]
pub struct Home {
    bpffs: Bpffs,
    folder: PathBuf,
}

impl Home {
    /// A bpffs and a folder of its own.
    pub fn new(label: &str) -> Result<Self> {
        let bpffs = Bpffs::new(label)?;
        let folder = bpffs.path().with_extension(FOLDER);
        fs::create_dir_all(folder.join("manifests"))
            .with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(Self { bpffs, folder })
    }

    /// `--manifests`
    pub fn manifests(&self) -> PathBuf {
        self.folder.join("manifests")
    }

    /// `--pin-dir`
    pub fn pin_dir(&self) -> PathBuf {
        self.bpffs.path().join("lb")
    }

    /// `--socket`
    pub fn socket(&self) -> PathBuf {
        self.folder.join("agent.sock")
    }

    /// What `lb-agent status` says.
    pub fn status(&self) -> Result<Value> {
        let mut command = Command::new(binary("lb-agent")?);
        command.args(["status", "-o", "json"]);
        let output = command.env("LB_PIN_DIR", self.pin_dir()).env("LB_SOCKET", self.socket()).output();
        let output = output.context("cannot run lb-agent status")?;
        if !output.status.success() {
            bail!("lb-agent status: {}", String::from_utf8_lossy(&output.stderr));
        }
        serde_json::from_slice(&output.stdout).context("lb-agent status -o json prints JSON")
    }

    /// What the agent has logged, all starts together.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.join("agent.log")
    }

    /// Puts a manifest in place at once, as a rename does.
    pub fn write(&self, name: &str, content: &str) -> Result<()> {
        let (path, next) = (self.manifests().join(name), self.folder.join(name));
        fs::write(&next, content).with_context(|| format!("cannot write {}", next.display()))?;
        fs::rename(&next, &path).with_context(|| format!("cannot rename to {}", path.display()))
    }

    /// Puts objects in place as one JSON `List`.
    pub fn apply(&self, name: &str, objects: &[Value]) -> Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.write(&format!("{name}.json"), &list.to_string())
    }

    /// Removes the file that [`Home::apply`] made.
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.manifests().join(format!("{name}.json"));
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("cannot remove {}: {error}", self.folder.display());
        }
    }
}

/// Removes the folders of homes of dead processes.
pub(crate) fn sweep() {
    for path in names::left_over(&env::temp_dir()) {
        // Another process may sweep at the same time: gone is what we want.
        if path.extension() == Some(OsStr::new(FOLDER))
            && let Err(error) = fs::remove_dir_all(&path)
            && path.exists()
        {
            eprintln!("cannot remove {}: {error}", path.display());
        }
    }
}

/// A running agent. Dropping it kills it; what it has attached and pinned stays until its [`Home`] is dropped.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    /// Ready lines of earlier starts in the log.
    ready_before: usize,
}

impl Agent {
    /// Starts the agent of `node` on the manifests of `home` and waits until it has attached its programs.
    pub fn start(node: &Node, home: &Home) -> Result<Self> {
        Self::start_with(node, home, [] as [&str; 0])
    }

    /// The same with further arguments of `lb-agent run`.
    pub fn start_with<A: AsRef<OsStr>>(
        node: &Node,
        home: &Home,
        args: impl IntoIterator<Item = A>,
    ) -> Result<Self> {
        let mut agent = Self::spawn(node, home, args)?;
        agent.wait_ready(home)?;
        Ok(agent)
    }

    /// Starts the agent on the manifests of `home` and waits for nothing.
    pub fn spawn<A: AsRef<OsStr>>(
        node: &Node,
        home: &Home,
        args: impl IntoIterator<Item = A>,
    ) -> Result<Self> {
        let manifests = home.manifests();
        let mut all: Vec<OsString> = vec!["--manifests".into(), manifests.into()];
        all.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        Self::spawn_from(node, home, all)
    }

    /// Starts the agent with `source`, which says where its objects come from (`--kubeconfig FILE`), and waits for
    /// nothing.
    pub fn spawn_from<A: AsRef<OsStr>>(
        node: &Node,
        home: &Home,
        source: impl IntoIterator<Item = A>,
    ) -> Result<Self> {
        let mut command = node.command(binary("lb-agent")?);
        command.arg("run").args(source);
        Self::spawn_command(node, home, command, &[])
    }

    /// Starts the agent as in a pod whose API server is at `server`, with $KUBECONFIG, and waits for nothing. `account`
    /// holds the files of the pod's service account, if it has one; the agent alone sees them where a pod does.
    pub fn spawn_in_pod(
        node: &Node,
        home: &Home,
        server: SocketAddr,
        account: Option<&Path>,
        kubeconfig: &Path,
    ) -> Result<Self> {
        // In a mount namespace of its own, which goes with the process. `/var/run` is a link on most systems.
        let script = r#"
            set -e
            mount -t tmpfs lb-tests "$(readlink -f /var/run)"
            if [ -n "$1" ]; then
                mkdir -p /var/run/secrets/kubernetes.io/serviceaccount
                cp "$1"/* /var/run/secrets/kubernetes.io/serviceaccount
            fi
            exec "$2" run"#;
        let mut command = node.command("unshare");
        command.args(["--mount", "--", "sh", "-c", script, "lb-agent"]);
        command.arg(account.unwrap_or(Path::new(""))).arg(binary("lb-agent")?);
        let (ip, port) = (server.ip().to_string(), server.port().to_string());
        let variables = [
            ("KUBERNETES_SERVICE_HOST", OsStr::new(&ip)),
            ("KUBERNETES_SERVICE_PORT", OsStr::new(&port)),
            ("KUBECONFIG", kubeconfig.as_os_str()),
        ];
        Self::spawn_command(node, home, command, &variables)
    }

    fn spawn_command(
        node: &Node,
        home: &Home,
        mut command: Command,
        variables: &[(&str, &OsStr)],
    ) -> Result<Self> {
        let ready_before = ready_lines(home);
        let mut log = File::options();
        let log =
            log.create(true).append(true).open(home.log_path()).context("cannot open the agent's log")?;
        set_up(&mut command, node, home, log).envs(variables.iter().copied());
        Ok(Self { process: Process::start("lb-agent", &mut command)?, ready_before })
    }

    /// Runs an agent that is expected to end by itself, on the manifests of `home`. Returns whether it was a success, and what
    /// it alone has logged, which is not in [`Home::log`].
    pub fn run_to_end(node: &Node, home: &Home, args: &[&str]) -> Result<(bool, String)> {
        let path = home.folder.join("ended.log");
        let mut command = node.command(binary("lb-agent")?);
        command.arg("run").arg("--manifests").arg(home.manifests()).args(args);
        let log = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        set_up(&mut command, node, home, log);
        let succeeded = Process::start("lb-agent", &mut command)?.wait(LIMIT)?.success();
        let log = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok((succeeded, log))
    }

    /// Waits until the agent has attached its programs.
    pub fn wait_ready(&mut self, home: &Home) -> Result<()> {
        let Self { process, ready_before } = self;
        wait_for("lb-agent to be ready", LIMIT, || {
            if ready_lines(home) > *ready_before {
                return Ok(());
            }
            if process.is_running() { Err("it runs".to_owned()) } else { Err("it has ended".to_owned()) }
        })
        .with_context(|| format!("its log:\n{}", home.log()))
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Asks it to stop, as a kubelet does, and waits for the end.
    pub fn stop(mut self) -> Result<()> {
        let status = self.process.stop(LIMIT)?;
        if !status.success() {
            bail!("lb-agent ended with {status}");
        }
        Ok(())
    }

    /// Kills it, as a crash does.
    pub fn crash(mut self) -> Result<()> {
        self.process.kill().map(drop)
    }

    /// Waits for the end of an agent that is expected to end by itself; returns whether it was a success.
    pub fn wait(&mut self) -> Result<bool> {
        self.process.wait(LIMIT).map(|status| status.success())
    }
}

/// Gives `lb-agent run` its surroundings by the environment, so that a test can give a flag another value.
fn set_up<'a>(command: &'a mut Command, node: &Node, home: &Home, log: File) -> &'a mut Command {
    command
        .env("LB_PIN_DIR", home.pin_dir())
        .env("LB_CGROUP", node.cgroup.path())
        .env("LB_SOCKET", home.socket())
        .env("NODE_NAME", &node.name)
        // Tests of sockets want to see what becomes of those that no hook serves.
        .env("LB_DEVICES", "none")
        .env("LB_POD_DEVICES", "none")
        // Lowering it needs a capability that root may lack in a container, and would be warned of.
        .env(
            "LB_OOM_SCORE_ADJ",
            fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_else(|_| "0".into()).trim(),
        )
        // What the caller's own cluster is, is none of its business.
        .env_remove("KUBECONFIG")
        .env_remove("KUBERNETES_SERVICE_HOST")
        .env("RUST_LOG", "info,lb_agent=debug,lb_ebpf=debug")
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
}

fn ready_lines(home: &Home) -> usize {
    home.log().lines().filter(|line| line.contains(" ready ")).count()
}

/// A Service of namespace `default`, type ClusterIP. `ports`: name, protocol, number.
pub fn service(name: &str, cluster_ips: &[&str], ports: &[(&str, &str, u16)]) -> Value {
    let families: Vec<&str> =
        cluster_ips.iter().map(|ip| if ip.contains(':') { "IPv6" } else { "IPv4" }).collect();
    let ports: Vec<Value> = ports
        .iter()
        .map(|(name, protocol, port)| json!({"name": name, "protocol": protocol, "port": port}))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "type": "ClusterIP", "clusterIP": cluster_ips.first(), "clusterIPs": cluster_ips, "ipFamilies": families,
            "ports": ports,
        },
    })
}

/// A slice of ready endpoints of the Service `service`, all at one port. All addresses have the family of the first one.
pub fn slice(name: &str, service: &str, port: (&str, &str, u16), addresses: &[IpAddr]) -> Value {
    let family = if addresses.first().is_some_and(IpAddr::is_ipv6) { "IPv6" } else { "IPv4" };
    let endpoints: Vec<Value> =
        addresses.iter().map(|addr| json!({"addresses": [addr], "conditions": {"ready": true}})).collect();
    let (port_name, protocol, number) = port;
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": family,
        "ports": [{"name": port_name, "protocol": protocol, "port": number}],
        "endpoints": endpoints,
    })
}

/// Parses an address and port of a test.
///
/// # Panics
/// If it is none.
pub fn at(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Path of a pinned map of `home`.
pub fn pinned(home: &Home, map: &str) -> PathBuf {
    Path::new(&home.pin_dir()).join("v1/maps").join(map)
}
