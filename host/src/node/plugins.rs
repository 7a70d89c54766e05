//! Which plugins there are at the start, and which of them makes new machines.

use std::sync::Arc;

use futures_util::future::join_all;

use crate::{
    admin,
    plugins::{
        Advertiser, Finding, PaymentVerifier, VmBackend,
        catalog::{Catalog, Loaded, PluginError, Probed},
    },
    vms::Backends,
};

/// What was loaded.
pub(super) struct Plugins {
    pub backends: Backends,
    pub advertisers: Vec<Arc<dyn Advertiser>>,
    pub verifiers: Vec<Arc<dyn PaymentVerifier>>,
    /// Payment verifiers that cannot be used, and why.
    pub unusable_verifiers: Vec<(String, String)>,
}

/// All plugins there are. New machines are made by the wanted backend, else by the first that can work here; every other
/// one is beside it, for the VMs that it once made.
pub(super) async fn load(catalog: &Catalog, wanted: Option<&str>) -> Result<Plugins, PluginError> {
    let mut backends: Vec<Arc<dyn VmBackend>> = Vec::new();
    let mut advertisers = Vec::new();
    let mut verifiers = Vec::new();
    let mut unusable_verifiers = Vec::new();
    let mut default = None;
    let mut reasons = Vec::new();
    let names = catalog.names().await;
    if let Some(wanted) = wanted
        && !names.iter().any(|name| name == wanted)
    {
        // Says which ones are known.
        catalog.load_named(wanted).await?;
    }
    let loading = join_all(names.iter().map(|name| catalog.load_named(name))).await;
    for (name, probed) in names.into_iter().zip(loading) {
        let is_wanted = wanted == Some(name.as_str());
        let probed = match probed {
            Ok(probed) => probed,
            Err(error) if is_wanted => return Err(error),
            Err(error @ PluginError::Disabled { .. }) => {
                tracing::info!(plugin.name = %name, "{error}");
                reasons.push(error.to_string());
                unusable_verifiers.push((name, error.to_string()));
                continue;
            }
            Err(error) => {
                tracing::error!(plugin.name = %name, "{error}");
                reasons.push(error.to_string());
                // Of what kind it would be nobody knows.
                unusable_verifiers.push((name, error.to_string()));
                continue;
            }
        };
        admin::report(&probed);
        let works = probed.works();
        let Probed { plugin, about, findings } = probed;
        match plugin {
            Loaded::Advertiser(advertiser) if works => advertisers.push(advertiser),
            // What it lacks was just told.
            Loaded::Advertiser(_) => {}
            Loaded::PaymentVerifier(verifier) if works => verifiers.push(verifier),
            Loaded::PaymentVerifier(_) => {
                let blocking = findings.iter().filter(|finding| finding.blocks());
                let why = blocking.map(Finding::sentence).collect::<Vec<_>>().join("; ");
                unusable_verifiers.push((name, why));
            }
            Loaded::VmBackend(backend) => {
                let sentence = |finding: &Finding| format!("{name}: {}", finding.sentence());
                let blocking = findings.iter().filter(|finding| finding.blocks());
                reasons.extend(blocking.map(sentence));
                if works && (is_wanted || (wanted.is_none() && default.is_none())) {
                    tracing::info!(
                        plugin.name = %name,
                        plugin.version = %about.version,
                        "new machines are made by {name}"
                    );
                    default = Some(backends.len());
                }
                backends.push(backend);
            }
        }
    }
    let backends = match default {
        Some(index) => {
            let default = backends.remove(index);
            Backends::new(default, backends)
        }
        None => {
            let reason = reasons.join("; ");
            tracing::error!("no machine can be made until this is mended: {reason}");
            Backends::none(reason, backends)
        }
    };
    Ok(Plugins { backends, advertisers, verifiers, unusable_verifiers })
}
