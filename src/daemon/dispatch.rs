//! Requests from the control socket: each to whoever grants it, and what came of it back.

use std::ops::ControlFlow;

use super::{DaemonError, Node};
use crate::{
    container::{AddressError, ContainerError},
    control::server::{Refusal, RefusalKind, Request},
    policy::kernel::PolicyError,
};

/// A failure of the daemon's own, as an answer.
fn failed(error: impl std::fmt::Display) -> Refusal {
    Refusal {
        kind: RefusalKind::Failed,
        line: error.to_string(),
    }
}

fn refusal(error: &DaemonError) -> Refusal {
    let kind = match error {
        DaemonError::Container(container) => match container {
            ContainerError::Unknown(_) => RefusalKind::Unknown,
            ContainerError::Exists(_)
            | ContainerError::HostDevice { .. }
            | ContainerError::InnerDevice { .. }
            | ContainerError::SameDevice { .. }
            | ContainerError::NamespaceTaken { .. }
            | ContainerError::RouteTaken { .. }
            | ContainerError::Address(
                AddressError::Taken { .. } | AddressError::Exhausted { .. },
            ) => RefusalKind::Conflict,
            ContainerError::BadName { .. }
            | ContainerError::Address(AddressError::Unusable { .. } | AddressError::Away { .. })
            | ContainerError::HostNamespace { .. }
            | ContainerError::Namespace(_) => RefusalKind::Bad,
            ContainerError::NoNetkit(_)
            | ContainerError::NameTaken { .. }
            | ContainerError::Netlink { .. } => RefusalKind::Failed,
        },
        DaemonError::Policy(PolicyError::TooMany(_) | PolicyError::Rule { .. }) => RefusalKind::Bad,
        _ => RefusalKind::Failed,
    };
    Refusal {
        kind,
        line: error.to_string(),
    }
}

/// Grants or refuses a request. An asker that is gone misses the answer, nothing else. Breaks where
/// the daemon is to end.
pub(super) async fn answer(node: &mut Node, request: Request) -> ControlFlow<()> {
    match request {
        Request::Status(answer) => {
            let _ = answer.send(node.status().map_err(failed));
        }
        Request::Stats(answer) => {
            let _ = answer.send(node.stats().await.map_err(failed));
        }
        Request::ListContainers(answer) => {
            let _ = answer.send(Ok(node.list_containers()));
        }
        Request::AddContainer(container, answer) => {
            let added = node.add_container(container.into()).await;
            let _ = answer.send(added.map_err(|error| refusal(&error)));
        }
        Request::DeleteContainer(name, answer) => {
            let deleted = node.delete_container(&name).await;
            let _ = answer.send(deleted.map_err(|error| refusal(&error)));
        }
        Request::Caches(answer) => {
            let caches = node.caches().map_err(failed);
            let caches = caches.and_then(|it| it.ok_or_else(|| no_fast_path(node)));
            let _ = answer.send(caches);
        }
        Request::Flush(answer) => {
            let flushed = node.flush().map_err(failed);
            let flushed = flushed.and_then(|it| it.ok_or_else(|| no_fast_path(node)));
            let _ = answer.send(flushed);
        }
        Request::Policy(answer) => {
            let _ = answer.send(node.policy().await.map_err(failed));
        }
        Request::ApplyPolicy(policy, answer) => {
            let applied = node.apply_policy(policy.rules).await;
            let _ = answer.send(applied.map_err(|error| refusal(&error)));
        }
        Request::Down(answer) => {
            // Whatever came of it, the node is taken apart: a second `oncache down` goes on from the
            // state file.
            let _ = answer.send(node.down().await.map_err(failed));
            return ControlFlow::Break(());
        }
    }
    ControlFlow::Continue(())
}

fn no_fast_path(node: &Node) -> Refusal {
    let reason = node.fast_path_failure().unwrap_or("cache.enabled is false");
    Refusal {
        kind: RefusalKind::Bad,
        line: format!("there is no fast path: {reason}"),
    }
}
