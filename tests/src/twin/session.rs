//! One seed: objects, changes, and after each change a look at everything.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::compare::{By, Difference, Outcome, aspects};
use super::generate;
use super::meant::{ENTRIES, Entry};
use super::model::{Service, TARGET_PORTS, backend, node_object};
use super::nodes::{Client, DetectLocal, Effort, PATIENCE, Pair, Question, server_name};
use super::targets::{Target, targets};
use super::yaml::yaml;
use crate::control_plane::{Namespace, objects};
use crate::random::Random;

/// Services of a seed.
const SERVICES: u8 = 5;

/// The Service that is changed last, by its number.
const SENTINEL: u8 = 250;

/// Differences that a failure shows.
const SHOWN: usize = 12;

/// The first look, at everything.
const FIRST: Effort = Effort { per_backend: 5, failures: 1, patience: 1 };

/// Later looks, where the first one found a difference: of n backends each is missed with a probability below e^-12.
const THOROUGH: Effort = Effort { per_backend: 12, failures: 2, patience: 2 };

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub struct Seed {
    /// Where the random numbers begin.
    pub seed: u64,
    /// Changes after the first objects.
    pub steps: u32,
    /// Only this Service, of 1 to 5: what happens to it is the same without the others.
    pub only: Option<u8>,
}

/// Both nodes, and what they have in common.
pub struct Laboratory<'a> {
    pair: Pair<'a>,
    namespace: &'a Namespace<'a>,
    detect: DetectLocal,
    /// The sentinel's latest port.
    turn: u16,
    /// How often each entry of the list was met.
    met: Vec<u64>,
    /// Destinations that were looked at.
    looks: u64,
    /// The first Service at which the nodes differed, and the step.
    suspect: Option<(u8, u32)>,
}

/// The objects of a seed.
struct World {
    seed: Seed,
    services: BTreeMap<u8, Service>,
    zone: Option<&'static str>,
    /// What the API server has, by name: Services before slices, as their kinds are sorted here.
    written: BTreeMap<(u8, String), Value>,
}

impl<'a> Laboratory<'a> {
    /// Starts both nodes with their proxies. The objects will be in `namespace`, which several may use one after the other.
    pub fn start(namespace: &'a Namespace<'a>, detect: DetectLocal) -> Result<Self> {
        let control_plane = namespace.control_plane();
        control_plane.apply(&node_object(None))?;
        let pair = Pair::start(control_plane, detect)?;
        Ok(Self { pair, namespace, detect, turn: 0, met: vec![0; ENTRIES.len()], looks: 0, suspect: None })
    }

    /// Makes the objects of `seed`, changes them step by step, and compares the nodes after each.
    ///
    /// # Errors
    /// The nodes differ: seed, step, objects, outcomes and the ends of both logs, and whether the first Service at which they
    /// differ does so alone.
    pub fn run(&mut self, seed: Seed) -> Result<()> {
        let result = self.run_once(seed);
        let Some((service, step)) = self.suspect.take().filter(|_| seed.only.is_none()) else {
            return result;
        };
        let alone = Seed { steps: step, only: Some(service), ..seed };
        let verdict = match self.run_once(alone) {
            Ok(()) => format!("s{service} alone does not differ"),
            Err(_) => format!("s{service} alone differs too: --only {service} --steps {step}"),
        };
        self.suspect = None;
        result.context(verdict)
    }

    fn run_once(&mut self, seed: Seed) -> Result<()> {
        let mut world = World::new(seed);
        let result = self.steps(&mut world);
        world.services.clear();
        let cleared = self.write(&mut world);
        // The first failure is the cause.
        result.and(cleared)
    }

    /// Destinations looked at so far, each on both nodes.
    pub fn looks(&self) -> u64 {
        self.looks
    }

    /// How often each entry of the list of differences was met, for people.
    pub fn met(&self) -> String {
        let line = |(entry, count): (&Entry, &u64)| format!("{count:>8}  {}: {}\n", entry.rule, entry.reason);
        ENTRIES.iter().zip(&self.met).map(line).collect()
    }

    /// Fails if an entry of the list was never met.
    pub fn check_all_met(&self) -> Result<()> {
        let is_unmet = |(entry, count): &(&Entry, &u64)| {
            **count == 0 && entry.detect.is_none_or(|detect| detect == self.detect)
        };
        let unmet = ENTRIES.iter().zip(&self.met).filter(is_unmet);
        let unmet: Vec<String> =
            unmet.map(|(entry, _)| format!("{} ({})", entry.rule, entry.reason)).collect();
        ensure!(unmet.is_empty(), "nothing was met of what meant.rs lists: {}", unmet.join("; "));
        Ok(())
    }

    fn steps(&mut self, world: &mut World) -> Result<()> {
        let mut what = vec!["the first objects".to_owned()];
        for step in 0..=world.seed.steps {
            if step > 0 {
                what = world.change(step);
            }
            let result = self.step(world, step);
            result.with_context(|| {
                let Seed { seed, steps, .. } = world.seed;
                let detect = if self.detect == DetectLocal::ByRange { " --detect-local" } else { "" };
                format!(
                    "seed {seed}, step {step} ({}); again: `cargo xtask soak twin --seed {seed} --steps {steps}{detect}`, \
                     `--only N` with the Service sN alone",
                    what.join(", ")
                )
            })?;
        }
        Ok(())
    }

    fn step(&mut self, world: &mut World, step: u32) -> Result<()> {
        self.write(world)?;
        self.sentinel()?;
        self.compare(world, step)
    }

    /// Lets the API server have the objects of `world`: what has changed, and nothing else.
    fn write(&self, world: &mut World) -> Result<()> {
        self.namespace.control_plane().apply(&node_object(world.zone))?;
        let wanted = world.objects();
        for (name, object) in world.written.iter().filter(|(name, _)| !wanted.contains_key(*name)) {
            self.namespace.delete(object).with_context(|| name.1.clone())?;
        }
        for (name, object) in &wanted {
            if world.written.get(name) != Some(object) && self.namespace.apply(object).is_err() {
                // Some changes the API server does not take, such as that of a cluster IP.
                self.namespace.delete(object)?;
                self.namespace.apply(object).with_context(|| yaml(object))?;
            }
            world.written.insert(name.clone(), object.clone());
        }
        world.written = wanted;
        Ok(())
    }

    /// Changes a Service and its slices after everything else, and waits until both proxies have followed: each kind of
    /// object reaches them in the order of its changes.
    fn sentinel(&mut self) -> Result<()> {
        self.turn = self.turn % 20_000 + 1;
        let number = 1000 + self.turn;
        let b = 3 + usize::from(self.turn % 4);
        let target = TARGET_PORTS[usize::from(self.turn % 3)];
        let ips = [format!("10.0.7.{SENTINEL}"), format!("fd00:10::7{SENTINEL:x}")];
        let spec = json!({
            "clusterIP": ips[0], "clusterIPs": ips, "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
            "ports": [{"name": "p", "protocol": "TCP", "port": number, "targetPort": target}],
        });
        self.namespace.apply(&objects::service("sentinel", &spec))?;
        for (family, label) in [(0, "v4"), (1, "v6")] {
            let ip = backend(b)[family].to_string();
            let mut slice = objects::slice(&format!("sentinel-{label}"), "sentinel", &[&ip], target);
            slice["ports"][0]["name"] = json!("p");
            self.namespace.apply(&slice)?;
        }
        for ip in ips {
            self.pair.wait_served(SocketAddr::new(ip.parse()?, number), &server_name(b, target))?;
        }
        Ok(())
    }

    /// Looks at every destination, and again and more thoroughly at those where the nodes differ, until what stays is
    /// known.
    fn compare(&mut self, world: &World, step: u32) -> Result<()> {
        let mut open = world.questions();
        self.looks += open.len() as u64;
        let begin = Instant::now();
        let mut effort = FIRST;
        loop {
            let mut unknown = Vec::new();
            for difference in self.look(world, &open, effort)? {
                match ENTRIES.iter().position(|entry| entry.is_met_by(&difference)) {
                    Some(entry) => self.met[entry] += 1,
                    None => unknown.push(difference),
                }
            }
            if unknown.is_empty() {
                return Ok(());
            }
            if begin.elapsed() > PATIENCE / 3 {
                self.suspect = unknown.first().map(|difference| (difference.question.target.service, step));
                bail!("{}", self.report(world, &unknown));
            }
            open.retain(|question| unknown.iter().any(|difference| difference.question == *question));
            // A busy machine may make a destination silent that is only slow.
            effort = Effort { patience: 2 * effort.patience.min(4), ..THOROUGH };
            sleep(Duration::from_millis(100));
        }
    }

    fn look<'w>(&self, world: &'w World, open: &[Question], effort: Effort) -> Result<Vec<Difference<'w>>> {
        let seen = self.pair.look(open, effort).with_context(|| self.pair.logs())?;
        let mut differences = Vec::new();
        for (question, [first, second]) in open.iter().zip(seen) {
            let target = &question.target;
            let service = &world.services[&target.service];
            let port = target.port(service);
            let affinity = service.affinity.filter(|_| port.is_some());
            let kube_proxy = Outcome::new(target, &first, By::KubeProxy);
            let agent = Outcome::new(target, &second, By::Agent);
            differences.extend(aspects(affinity, &kube_proxy, &agent).into_iter().map(|aspect| Difference {
                aspect,
                question: *question,
                service,
                port,
                detect: self.detect,
                kube_proxy: kube_proxy.clone(),
                agent: agent.clone(),
            }));
        }
        Ok(differences)
    }

    fn report(&self, world: &World, unknown: &[Difference<'_>]) -> String {
        let mut text = format!("the nodes differ at {} destinations; zone {:?}\n", unknown.len(), world.zone);
        // One of each kind: the same mistake shows at many ports.
        let kind = |it: &Difference<'_>| {
            (it.question.target.place, it.question.target.how, it.kube_proxy.clone(), it.agent.clone())
        };
        let mut kinds = Vec::new();
        for difference in unknown {
            if !kinds.contains(&kind(difference)) && kinds.len() < SHOWN {
                kinds.push(kind(difference));
                // Writing to a string cannot fail.
                writeln!(text, "{difference}").unwrap_or_default();
            }
        }
        let first = unknown.first().map(|difference| difference.question.target.service);
        let own = world.written.iter().filter(|((service, _), _)| Some(*service) == first);
        text.extend(own.map(|(_, object)| format!("---\n{}", yaml(object))));
        text + &self.pair.logs()
    }
}

impl World {
    fn new(seed: Seed) -> Self {
        let mut services = BTreeMap::new();
        for index in (1..=SERVICES).filter(|index| seed.only.is_none_or(|only| only == *index)) {
            services.insert(index, generate::service(index, &mut Random::new(&[seed.seed, 0, index.into()])));
        }
        let zone = zone(&mut Random::new(&[seed.seed, 0, 0]));
        Self { seed, services, zone, written: BTreeMap::new() }
    }

    /// Changes about half of the Services, each in one way that does not depend on the others. Says what.
    fn change(&mut self, step: u32) -> Vec<String> {
        let mut what = Vec::new();
        for (index, service) in &mut self.services {
            let mut random = Random::new(&[self.seed.seed, step.into(), (*index).into()]);
            if random.chance(50) {
                let change = generate::change(service, &mut random);
                what.push(format!("s{index}: {change}"));
            }
        }
        let mut random = Random::new(&[self.seed.seed, step.into(), 0]);
        if random.chance(15) {
            self.zone = zone(&mut random);
            what.push(format!("zone {:?}", self.zone));
        }
        what
    }

    fn objects(&self) -> BTreeMap<(u8, String), Value> {
        let mut objects = BTreeMap::new();
        for (index, service) in &self.services {
            if service.exists {
                objects.insert((*index, service.name()), service.object());
            }
            for slice in &service.slices {
                objects.insert((*index, service.slice_name(slice)), service.slice_object(slice));
            }
        }
        objects
    }

    /// All destinations of all clients.
    fn questions(&self) -> Vec<Question> {
        let of = |client| {
            let targets = targets(&self.services, client).into_iter();
            targets.map(move |target| Question { client, target, backends: self.most_backends(&target) })
        };
        Client::ALL.into_iter().flat_map(of).collect()
    }

    /// How many backends there may be at `target`.
    fn most_backends(&self, target: &Target) -> usize {
        let service = &self.services[&target.service];
        target.port(service).map_or(0, |port| service.most_backends(target.family(), port))
    }
}

fn zone(random: &mut Random) -> Option<&'static str> {
    random.pick(&[None, Some("a"), Some("a"), Some("b")])
}
