//! Which devices are connected, and where.

use crate::metrics::Metrics;
use crate::model::DeviceId;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::Notify;

/// The connected devices. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Registry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    devices: Mutex<HashMap<DeviceId, Arc<Notify>>>,
    metrics: Metrics,
}

/// A device's place in the registry, given up when dropped.
#[derive(Debug)]
pub struct Connected {
    registry: Registry,
    device: DeviceId,
    replaced: Arc<Notify>,
}

impl Registry {
    pub fn new(metrics: Metrics) -> Registry {
        Registry(Arc::new(Inner { devices: Mutex::default(), metrics }))
    }

    /// Whether the device has a connection.
    pub fn is_connected(&self, device: &DeviceId) -> bool {
        self.0.devices.lock().contains_key(device)
    }

    /// The device connected. An older connection of the same device is told to go.
    pub fn connect(&self, device: &DeviceId) -> Connected {
        let replaced = Arc::new(Notify::new());
        let mut devices = self.0.devices.lock();
        if let Some(older) = devices.insert(device.clone(), replaced.clone()) {
            older.notify_one();
        }
        self.0.metrics.devices_connected.set(i64::try_from(devices.len()).unwrap_or(i64::MAX));
        Connected { registry: self.clone(), device: device.clone(), replaced }
    }
}

impl Connected {
    /// Waits until the same device connects again. Cancel-safe.
    pub fn replaced(&self) -> impl Future<Output = ()> + Send + use<> {
        let replaced = self.replaced.clone();
        async move { replaced.notified().await }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let mut devices = self.registry.0.devices.lock();
        if devices.get(&self.device).is_some_and(|current| Arc::ptr_eq(current, &self.replaced)) {
            devices.remove(&self.device);
        }
        self.registry.0.metrics.devices_connected.set(i64::try_from(devices.len()).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_device_that_connects_again_takes_the_older_connections_place() {
        let metrics = Metrics::new();
        let registry = Registry::new(metrics.clone());
        let device = DeviceId::new("pump").expect("a valid name");
        let older = registry.connect(&device);
        let newer = registry.connect(&device);
        older.replaced().await;
        assert_eq!(metrics.devices_connected.get(), 1);
        drop(older);
        assert_eq!(metrics.devices_connected.get(), 1);
        drop(newer);
        assert_eq!(metrics.devices_connected.get(), 0);
    }
}
