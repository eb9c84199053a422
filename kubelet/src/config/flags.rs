//! Flags that say the same as a field of the configuration file, as upstream has them: a table, so that the command line need not
//! repeat the file.

mod table;

use serde_json::{Map, Value, json};

pub use table::FLAGS;

/// How a flag's text becomes a field's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// As it is: texts, durations, quantities.
    Text,
    /// A whole number.
    Number,
    /// `true` or `false`.
    Switch,
    /// Parts between commas.
    List,
    /// `key=value` pairs between commas.
    Pairs,
    /// `signal<amount` pairs between commas.
    Thresholds,
    /// `key=value:Effect` between commas.
    Taints,
    /// `key=true` or `key=false` between commas.
    Gates,
}

/// One flag.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// Its name, without dashes.
    pub name: &'static str,
    /// The field, with its parents (`authentication.webhook.enabled`); empty where the file has none.
    pub field: &'static str,
    /// How its text is read.
    pub kind: Kind,
    /// What it says, for `--help`.
    pub help: &'static str,
}

impl Flag {
    /// Whether the file has a field for it. Where it has none, nothing acts on the flag.
    pub fn has_field(&self) -> bool {
        !self.field.is_empty()
    }

    /// Lays the flag's text over `fields`.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn set(&self, text: &str, fields: &mut Map<String, Value>) -> Result<(), String> {
        let mut value = self.kind.read(text)?;
        if !self.has_field() {
            return Ok(());
        }
        let mut path: Vec<&str> = self.field.split('.').collect();
        let top = path.remove(0);
        for part in path.iter().rev() {
            value = json!({ *part: value });
        }
        let mut whole = Value::Object(std::mem::take(fields));
        skiff_api::patch::json_merge(&mut whole, &json!({ top: value }));
        if let Value::Object(map) = whole {
            *fields = map;
        }
        Ok(())
    }
}

impl Kind {
    fn read(self, text: &str) -> Result<Value, String> {
        let parts = || text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let pairs = |separator: char| -> Result<Value, String> {
            let pair = |part: &str| {
                let (key, value) = part
                    .split_once(separator)
                    .ok_or_else(|| format!("{part:?} is not of the form key{separator}value"))?;
                Ok((key.trim().to_owned(), Value::from(value.trim())))
            };
            parts()
                .map(pair)
                .collect::<Result<Map<_, _>, String>>()
                .map(Value::Object)
        };
        match self {
            Self::Text => Ok(text.into()),
            Self::Number => text
                .parse::<i64>()
                .map(Value::from)
                .map_err(|_| format!("{text:?} is not a whole number")),
            Self::Switch => text
                .parse::<bool>()
                .map(Value::from)
                .map_err(|_| format!("{text:?} is neither true nor false")),
            Self::List => Ok(parts().collect()),
            Self::Pairs => pairs('='),
            Self::Thresholds => pairs('<'),
            Self::Taints => parts().map(taint).collect(),
            Self::Gates => parts().map(gate).collect::<Result<Map<_, _>, _>>().map(Value::Object),
        }
    }
}

/// `key=true` or `key=false`.
fn gate(text: &str) -> Result<(String, Value), String> {
    let read = text
        .split_once('=')
        .and_then(|(key, on)| Some((key, on.parse::<bool>().ok()?)));
    let (key, on) = read.ok_or_else(|| format!("{text:?} is neither key=true nor key=false"))?;
    Ok((key.to_owned(), on.into()))
}

/// `key=value:Effect` or `key:Effect`.
fn taint(text: &str) -> Result<Value, String> {
    let (what, effect) = text
        .rsplit_once(':')
        .ok_or_else(|| format!("{text:?} is not of the form key=value:Effect"))?;
    let (key, value) = what.split_once('=').unwrap_or((what, ""));
    Ok(json!({"key": key, "value": value, "effect": effect}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KubeletConfiguration;

    fn read(words: &[(&str, &str)]) -> Result<KubeletConfiguration, String> {
        let mut fields = Map::new();
        for (name, text) in words {
            let flag = FLAGS.iter().find(|flag| flag.name == *name).ok_or("no such flag")?;
            flag.set(text, &mut fields)?;
        }
        let config = crate::config::Flags {
            overrides: fields,
            ..Default::default()
        };
        crate::config::Config::load(None, config)
            .map(|config| config.kubelet)
            .map_err(|error| skiff_daemon::error_chain(&error))
    }

    #[test]
    fn flags_become_fields() {
        let config = read(&[
            ("max-pods", "7"),
            ("cluster-dns", "10.0.0.1,10.0.0.2"),
            ("kube-reserved", "cpu=200m,memory=1Gi"),
            ("eviction-hard", "memory.available<1Gi,nodefs.available<10%"),
            ("authentication-token-webhook", "false"),
            ("anonymous-auth", "true"),
            ("register-with-taints", "a=b:NoSchedule,c:NoExecute"),
            ("cpu-cfs-quota-period", "10ms"),
        ])
        .unwrap();
        assert_eq!((config.max_pods, config.cluster_dns.len()), (7, 2));
        assert_eq!(config.kube_reserved["memory"], "1Gi");
        assert_eq!(config.eviction_hard.len(), 2);
        assert!(!config.authentication.webhook.enabled && config.authentication.anonymous.enabled);
        assert_eq!(
            (
                config.register_with_taints[1].key.as_str(),
                config.register_with_taints.len()
            ),
            ("c", 2)
        );
        assert_eq!(config.cpu_cfs_quota_period.0.as_millis(), 10);
    }

    #[test]
    fn a_file_without_a_name_is_none() {
        let config = read(&[
            ("client-ca-file", ""),
            ("tls-cert-file", ""),
            ("tls-private-key-file", ""),
        ])
        .unwrap();
        assert_eq!((config.tls_cert_file, config.tls_private_key_file), (None, None));
        assert_eq!(config.authentication.x509.client_ca_file, None);
        assert_eq!(
            read(&[("max-pods", "0")]).unwrap().max_pods,
            0,
            "a flag's zero is meant"
        );
    }

    #[test]
    fn every_flag_names_a_field() {
        for flag in FLAGS.iter().filter(|flag| flag.has_field()) {
            let text = match flag.kind {
                Kind::Text => continue,
                Kind::Number => "5",
                Kind::Switch => "true",
                Kind::List => "pods",
                Kind::Pairs | Kind::Thresholds => "",
                Kind::Taints => "a:NoSchedule",
                Kind::Gates => "A=true",
            };
            let mut fields = Map::new();
            flag.set(text, &mut fields).unwrap();
            let config: Result<KubeletConfiguration, _> = serde_json::from_value(Value::Object(fields));
            let config = config.unwrap_or_else(|error| panic!("--{}: {error}", flag.name));
            let known = |field: &String| crate::config::configuration::known_elsewhere(field);
            assert!(config.other.keys().all(known), "--{} names no field", flag.name);
        }
        assert!(FLAGS.is_sorted_by_key(|flag| flag.name));
    }

    #[test]
    fn bad_texts_are_refused() {
        for (name, text) in [
            ("max-pods", "x"),
            ("fail-swap-on", "maybe"),
            ("kube-reserved", "cpu"),
            ("register-with-taints", "a=b"),
            ("feature-gates", "A=yes"),
            ("maximum-dead-containers", "few"),
        ] {
            assert!(read(&[(name, text)]).is_err(), "--{name}={text}");
        }
    }
}
