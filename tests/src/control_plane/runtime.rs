//! A network namespace with a thread and an async runtime inside.

use std::net::TcpListener;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, setns};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::Netns;

/// A network namespace and a thread that runs futures in it.
///
/// Everything polled here opens its sockets in the namespace, whichever thread asked for it: the runtime
/// has this one thread, so no task can wake elsewhere.
#[derive(Debug)]
pub struct NetnsRuntime {
    handle: Handle,
    netns: Netns,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl NetnsRuntime {
    /// Starts the thread in `netns`.
    pub fn start(netns: Netns) -> Result<Self> {
        let (ready, started) = mpsc::sync_channel(1);
        let (stop, stopped) = oneshot::channel::<()>();
        let file = std::os::fd::AsFd::as_fd(&netns).try_clone_to_owned()?;
        let thread = thread::Builder::new().name(netns.name().to_owned()).spawn(move || {
            let runtime = setns(file, CloneFlags::CLONE_NEWNET)
                .context("cannot enter the network namespace")
                .and_then(|()| Ok(Builder::new_current_thread().enable_all().build()?));
            match runtime {
                Ok(runtime) => {
                    if ready.send(Ok(runtime.handle().clone())).is_ok() {
                        // Both a message and a dropped sender mean the end.
                        drop(runtime.block_on(stopped));
                    }
                }
                // The receiver waits for this one message.
                Err(error) => drop(ready.send(Err(error))),
            }
        })?;
        let handle = started.recv().map_err(|_gone| anyhow!("the thread of {} ended", netns.name()))??;
        Ok(Self { handle, netns, stop: Some(stop), thread: Some(thread) })
    }

    /// The namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Runs `future` in the namespace and waits for its result. Not to be called from async code.
    ///
    /// # Panics
    /// When `future` panics.
    pub fn run<F>(&self, future: F) -> F::Output
    where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        let (done, result) = mpsc::sync_channel(1);
        self.handle.spawn(async move {
            // The receiver waits below until this task is over.
            drop(done.send(future.await));
        });
        result.recv().expect("the task sends its result unless it panicked")
    }

    /// Starts `future` in the namespace; it ends with the runtime.
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.handle.spawn(future);
    }

    /// Passes every connection that `listener` accepts on to the address `target` in this namespace.
    ///
    /// The listener keeps the namespace it was bound in, so this is a way in that needs no interface.
    pub fn forward(&self, listener: TcpListener, target: String) -> Result<()> {
        listener.set_nonblocking(true).context("cannot make the listener non-blocking")?;
        self.spawn(async move {
            let listener =
                tokio::net::TcpListener::from_std(listener).expect("this is a tokio runtime with I/O");
            while let Ok((mut client, _)) = listener.accept().await {
                let target = target.clone();
                tokio::spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(target).await {
                        // Either side may reset; the other one then sees its connection closed.
                        drop(tokio::io::copy_bidirectional(&mut client, &mut server).await);
                    }
                });
            }
        });
        Ok(())
    }
}

impl Drop for NetnsRuntime {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed by then.
            drop(thread.join());
        }
    }
}
