//! The files of configMap, secret, downwardAPI and projected volumes.

use std::path::{Path, PathBuf};

use skiff_api::k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Pod, Volume, VolumeProjection};

use super::atomic::{File, Files};
use super::{Error, Tokens, fs_group};
use crate::env::{self, Facts};
use crate::objects::{Kind, Objects};
use crate::pod;

const DEFAULT_MODE: i32 = 0o644;
/// Of a token that need not be read by everybody: fsGroup may still open it to its group.
const CLOSED: i32 = 0o600;

/// Collects the files of one volume.
struct Collector<'a> {
    objects: &'a Objects,
    tokens: &'a Tokens,
    pod: &'a Pod,
    facts: &'a Facts,
    mode: i32,
    files: Files,
}

/// All files of a volume that is made from API objects.
pub(super) async fn files(
    objects: &Objects,
    tokens: &Tokens,
    pod: &Pod,
    volume: &Volume,
    facts: &Facts,
) -> Result<Files, Error> {
    let mut collector = Collector {
        objects,
        tokens,
        pod,
        facts,
        mode: DEFAULT_MODE,
        files: Files::new(),
    };
    if let Some(source) = &volume.config_map {
        collector.mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        collector
            .object(Kind::ConfigMap, &source.name, source.items.as_deref(), source.optional)
            .await?;
    } else if let Some(source) = &volume.secret {
        collector.mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let name = source.secret_name.as_deref().unwrap_or_default();
        collector
            .object(Kind::Secret, name, source.items.as_deref(), source.optional)
            .await?;
    } else if let Some(source) = &volume.downward_api {
        collector.mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        collector.downward(source.items.as_deref())?;
    } else if let Some(source) = &volume.projected {
        collector.mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        for part in source.sources.iter().flatten() {
            collector.projected(part).await?;
        }
    }
    Ok(collector.files)
}

impl Collector<'_> {
    async fn projected(&mut self, part: &VolumeProjection) -> Result<(), Error> {
        if let Some(source) = &part.config_map {
            self.object(Kind::ConfigMap, &source.name, source.items.as_deref(), source.optional)
                .await?;
        }
        if let Some(source) = &part.secret {
            self.object(Kind::Secret, &source.name, source.items.as_deref(), source.optional)
                .await?;
        }
        if let Some(source) = &part.downward_api {
            self.downward(source.items.as_deref())?;
        }
        if let Some(source) = &part.service_account_token {
            let token = self.tokens.get(self.pod, source).await?;
            let owner = common_user(self.pod);
            let closed = owner.is_some() || fs_group(self.pod).is_some();
            let mode = if closed { CLOSED } else { self.mode };
            self.add(&source.path, token.into_bytes(), Some(mode));
            if let Some(file) = self.files.get_mut(Path::new(&source.path)) {
                file.owner = owner;
            }
        }
        if part.cluster_trust_bundle.is_some() {
            return Err(Error::Unsupported("clusterTrustBundle"));
        }
        Ok(())
    }

    async fn object(
        &mut self,
        kind: Kind,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: Option<bool>,
    ) -> Result<(), Error> {
        let optional = optional.unwrap_or(false);
        let Some(object) = self.objects.get(self.pod, kind, name).await? else {
            if optional {
                return Ok(());
            }
            return Err(Error::Missing(format!("{} \"{name}\" not found", kind.word())));
        };
        let items = items.unwrap_or_default();
        if items.is_empty() {
            for (key, value) in &object.data {
                self.add(key, value.to_vec(), None);
            }
        }
        for item in items {
            match object.data.get(&item.key) {
                Some(value) => self.add(&item.path, value.to_vec(), item.mode),
                None if optional => {}
                None => {
                    return Err(Error::Missing(format!(
                        "{} references non-existent {} key: {}",
                        kind.word(),
                        if kind == Kind::Secret { "secret" } else { "config" },
                        item.key
                    )));
                }
            }
        }
        Ok(())
    }

    fn downward(&mut self, items: Option<&[DownwardAPIVolumeFile]>) -> Result<(), Error> {
        for item in items.unwrap_or_default() {
            let text = if let Some(field) = &item.field_ref {
                env::field_value(self.pod, &field.field_path, self.facts)?
            } else if let Some(resource) = &item.resource_field_ref {
                env::resource_value(self.pod, None, resource, self.facts)?
            } else {
                String::new()
            };
            self.add(&item.path, text.into_bytes(), item.mode);
        }
        Ok(())
    }

    fn add(&mut self, path: &str, content: Vec<u8>, mode: Option<i32>) {
        let mode = u32::try_from(mode.unwrap_or(self.mode)).unwrap_or(0o644);
        let owner = None;
        self.files.insert(PathBuf::from(path), File { content, mode, owner });
    }
}

/// The user that all containers of the pod run as, where the pod says so.
fn common_user(pod: &Pod) -> Option<u32> {
    let of_pod = pod::spec(pod)
        .security_context
        .as_ref()
        .and_then(|context| context.run_as_user);
    let containers = pod::init_containers(pod).iter().chain(pod::main_containers(pod));
    let mut users = containers.map(|container| {
        let own = container
            .security_context
            .as_ref()
            .and_then(|context| context.run_as_user);
        own.or(of_pod)
    });
    let first = users.next()??;
    users
        .all(|user| user == Some(first))
        .then(|| u32::try_from(first).ok())?
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn who_owns_a_token() {
        let as_user = |name: &str, user: i64| json!({"name": name, "securityContext": {"runAsUser": user}});
        let plain = json!({"name": "p"});
        let cases = [
            (json!({}), None),
            (json!({"securityContext": {"runAsUser": 7}}), Some(7)),
            (json!({"containers": [as_user("a", 7), as_user("b", 7)]}), Some(7)),
            (json!({"containers": [as_user("a", 7), as_user("b", 8)]}), None),
            (json!({"containers": [as_user("a", 7), plain]}), None),
            (
                json!({"initContainers": [plain], "containers": [as_user("a", 7)]}),
                None,
            ),
            (
                json!({"securityContext": {"runAsUser": 7}, "initContainers": [plain], "containers": [as_user("a", 8)]}),
                None,
            ),
            (
                json!({"securityContext": {"runAsUser": 7}, "initContainers": [plain], "containers": [as_user("a", 7)]}),
                Some(7),
            ),
        ];
        for (spec, owner) in cases {
            assert_eq!(common_user(&pod(&spec)), owner, "{spec}");
        }
    }
}
