//! Network devices.

use std::{
    net::Ipv4Addr,
    os::fd::{AsRawFd, BorrowedFd},
};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{
        BridgePortState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoNetkit, InfoPortData,
        InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, NetkitMode,
        NetkitPolicy,
    },
};
use nix::errno::Errno;
use rtnetlink::{LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVxlan};

use super::{Mac, Netlink, NetlinkError, PairKind, PortSettings};

/// A network device as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The device's name.
    pub name: String,
    /// The interface index.
    pub index: u32,
    /// MTU in bytes, without the link layer's header.
    pub mtu: u32,
    /// The link-layer address, if it is of six bytes.
    pub mac: Option<Mac>,
    /// Set up by the administrator (`IFF_UP`), whether or not there is a carrier.
    pub up: bool,
    /// Has a carrier (`IFF_LOWER_UP`): of an end of a pair, that the other end is up too.
    pub carrier: bool,
    /// Takes and gives packets as a port of a bridge.
    pub forwarding: bool,
    /// What the bridge that this is a port of does here.
    pub port: Option<PortSettings>,
    /// The device group, 0 unless somebody has set it.
    pub group: u32,
    /// The interface index of the bridge or bond that this is a port of.
    pub controller: Option<u32>,
    /// The driver's name (`bridge`, `vxlan`, `veth`, `netkit`); none for hardware and loopback.
    pub kind: Option<String>,
    /// The id of the network namespace that the far end of a pair is in; none if that is this one. The
    /// far end lives, or the pair would not: a namespace takes its devices along.
    pub far_namespace: Option<i32>,
    /// The free text of `ip link set alias`.
    pub alias: Option<String>,
    /// The parameters of a VXLAN device.
    pub vxlan: Option<VxlanParameters>,
}

/// What makes a VXLAN device the one it is. The kernel lets none of it change later, except
/// `learning` (drivers/net/vxlan/vxlan_core.c, `vxlan_nl2conf`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VxlanParameters {
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// The outer source address.
    pub local: Option<Ipv4Addr>,
    /// The outer UDP destination port, host byte order.
    pub port: u16,
    /// Whether received packets teach the forwarding table.
    pub learning: bool,
    /// Whether the outer UDP checksum is filled in over IPv4.
    pub udp_csum: bool,
    /// The interface index of the device that carries the outer packets.
    pub link: Option<u32>,
}

impl PairKind {
    /// Of a device, if it is an end of a pair.
    #[must_use]
    pub fn of(link: &Link) -> Option<Self> {
        let kind = link.kind.as_deref()?;
        [Self::Veth, Self::Netkit]
            .into_iter()
            .find(|it| it.name() == kind)
    }

    /// The driver and its parameters; `peer` is the far end.
    fn parameters(self, peer: LinkMessage) -> (InfoKind, InfoData) {
        match self {
            Self::Veth => (InfoKind::Veth, InfoData::Veth(InfoVeth::Peer(peer))),
            // All of it said, since the default mode has no link-layer addresses: a port of a bridge
            // needs them. What programs leave alone passes. Scrubbing is left to its default, which
            // clears the mark and is the only way before 6.13.
            Self::Netkit => (
                InfoKind::Netkit,
                InfoData::Netkit(vec![
                    InfoNetkit::Mode(NetkitMode::L2),
                    InfoNetkit::Policy(NetkitPolicy::Pass),
                    InfoNetkit::PeerPolicy(NetkitPolicy::Pass),
                    InfoNetkit::Peer(peer),
                ]),
            ),
        }
    }
}

/// One end of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PairEnd<'a> {
    /// The device's name, at most 15 bytes.
    pub name: &'a str,
    /// The link-layer address.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
}

impl Netlink {
    /// All devices of the namespace. Where others make and remove devices faster than they can be
    /// listed, each that the list names has been there a moment ago.
    ///
    /// # Errors
    /// [`NetlinkError`] when the table cannot be read.
    pub async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let key = |link: &Link| link.index;
        let (links, whole) = self.gather("list devices", request, parse, key).await?;
        if whole {
            return Ok(links);
        }
        let mut present = Vec::with_capacity(links.len());
        for link in links {
            present.extend(self.link(link.index).await?);
        }
        Ok(present)
    }

    /// The device with this interface index, if there is one.
    ///
    /// # Errors
    /// [`NetlinkError`] when the table cannot be read.
    pub async fn link(&self, index: u32) -> Result<Option<Link>, NetlinkError> {
        let mut request = LinkMessage::default();
        request.header.index = index;
        let operation = format_args!("look up device #{index}");
        let request = RouteNetlinkMessage::GetLink(request);
        match self.get(operation, request).await {
            Ok(entry) => Ok(parse(entry)),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The device with this name, if there is one.
    ///
    /// # Errors
    /// [`NetlinkError`] when the table cannot be read.
    pub async fn link_by_name(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let mut request = LinkMessage::default();
        request.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        let operation = format_args!("look up device {name}");
        match self
            .get(operation, RouteNetlinkMessage::GetLink(request))
            .await
        {
            Ok(entry) => Ok(parse(entry)),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Creates a VXLAN device, down. The FDB is nobody's but the caller's: nothing is flooded
    /// because there is no default destination.
    ///
    /// # Errors
    /// [`NetlinkError`] naming the device.
    pub async fn create_vxlan(
        &self,
        name: &str,
        mac: Mac,
        mtu: u32,
        parameters: VxlanParameters,
    ) -> Result<(), NetlinkError> {
        let mut builder = LinkVxlan::new(name, parameters.vni)
            .port(parameters.port)
            .learning(parameters.learning)
            // Said even if false: absent means on over IPv4 (drivers/net/vxlan/vxlan_core.c,
            // vxlan_nl2conf: VXLAN_F_UDP_ZERO_CSUM_TX is set by this attribute alone).
            .udp_csum(parameters.udp_csum)
            .address(mac.to_vec())
            .mtu(mtu);
        if let Some(local) = parameters.local {
            builder = builder.local(local);
        }
        if let Some(link) = parameters.link {
            builder = builder.dev(link);
        }
        self.create(name, builder.build()).await
    }

    /// Creates a bridge, down, without spanning tree.
    ///
    /// The address is given at creation because the bridge otherwise takes the lowest of its ports'
    /// addresses and changes it as they come and go (net/bridge/br_stp_if.c,
    /// `br_stp_recalculate_bridge_id`). The MTU is the kernel's to choose until
    /// [`Netlink::set_mtu`] fixes it.
    ///
    /// # Errors
    /// [`NetlinkError`] naming the device.
    pub async fn create_bridge(&self, name: &str, mac: Mac) -> Result<(), NetlinkError> {
        let message = LinkMessageBuilder::<LinkBridge>::new(name)
            .address(mac.to_vec())
            .build();
        self.create(name, message).await
    }

    /// Whether a bridge hands the IPv4 packets that it forwards to the `inet` and `ip` hooks, whatever
    /// the namespace-wide setting says; none if there is no such bridge or no such thing.
    ///
    /// # Errors
    /// [`NetlinkError`] when the device cannot be read.
    pub async fn bridge_netfilter(&self, name: &str) -> Result<Option<bool>, NetlinkError> {
        let mut request = LinkMessage::default();
        request.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        let operation = format_args!("look up device {name}");
        let entry = self
            .get(operation, RouteNetlinkMessage::GetLink(request))
            .await;
        let message = match entry {
            Ok(RouteNetlinkMessage::NewLink(message)) => message,
            Ok(_) => return Ok(None),
            Err(error) if error.is_absent() => return Ok(None),
            Err(error) => return Err(error),
        };
        let infos = message.attributes.iter().filter_map(|it| match it {
            LinkAttribute::LinkInfo(infos) => Some(infos),
            _ => None,
        });
        let data = infos.flatten().filter_map(|info| match info {
            LinkInfo::Data(InfoData::Bridge(data)) => Some(data),
            _ => None,
        });
        Ok(data.flatten().find_map(|info| match info {
            InfoBridge::NfCallIpTables(on) => Some(*on),
            _ => None,
        }))
    }

    /// Sets what [`Netlink::bridge_netfilter`] reads.
    ///
    /// # Errors
    /// [`NetlinkError`] naming the device.
    pub async fn set_bridge_netfilter(&self, name: &str, on: bool) -> Result<(), NetlinkError> {
        let message = LinkMessageBuilder::<LinkBridge>::new(name)
            .set_info_data(InfoData::Bridge(vec![InfoBridge::NfCallIpTables(on)]))
            .build();
        self.change(
            format_args!("set nf_call_iptables {} of device {name}", u8::from(on)),
            RouteNetlinkMessage::NewLink(message),
            0,
        )
        .await
    }

    /// Whether the kernel has netkit devices.
    ///
    /// Asked by a request for one that no kernel grants, with a group address: the driver refuses that
    /// (drivers/net/netkit.c, `netkit_validate`) before anything is made, and a kernel without the
    /// driver refuses the driver (net/core/rtnetlink.c, `rtnl_newlink`).
    ///
    /// # Errors
    /// [`NetlinkError`] with any other answer.
    pub async fn has_netkit(&self) -> Result<bool, NetlinkError> {
        const NAME: &str = "oncache-probe";
        let message = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Netkit)
            .name(NAME)
            .address(vec![1, 0, 0, 0, 0, 0])
            .build();
        match self.create(NAME, message).await {
            Ok(()) => {
                let index = self.index_of(NAME).await?;
                self.delete_link(index).await.map(|()| true)
            }
            Err(error) => match error.errno() {
                Some(Errno::EADDRNOTAVAIL) => Ok(true),
                Some(Errno::EOPNOTSUPP) => Ok(false),
                _ => Err(error),
            },
        }
    }

    /// Creates a pair, both ends down, one end here and the other directly in another network
    /// namespace: at no moment does a device of that name show here. Of a netkit pair, the end here is
    /// the primary.
    ///
    /// # Errors
    /// [`NetlinkError`] naming the device; nothing is left behind.
    pub async fn create_pair(
        &self,
        kind: PairKind,
        here: PairEnd<'_>,
        alias: &str,
        there: PairEnd<'_>,
        namespace: BorrowedFd<'_>,
    ) -> Result<(), NetlinkError> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(there.name)
            .address(there.mac.to_vec())
            .mtu(there.mtu)
            .setns_by_fd(namespace.as_raw_fd())
            .build();
        let (driver, parameters) = kind.parameters(peer);
        let message = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(driver)
            .name(here.name)
            .address(here.mac.to_vec())
            .mtu(here.mtu)
            .set_info_data(parameters)
            .build();
        self.create(here.name, message).await?;
        // IFLA_IFALIAS is silently ignored at creation (net/core/rtnetlink.c, rtnl_create_link).
        let named = async {
            let index = self.index_of(here.name).await?;
            self.set_alias(index, alias).await
        };
        if let Err(error) = named.await {
            // Without its alias the device is nobody's: take it away rather than leak it. Why that
            // fails would only hide the first reason.
            if let Ok(index) = self.index_of(here.name).await {
                let _ = self.delete_link(index).await;
            }
            return Err(error);
        }
        Ok(())
    }

    /// Names a device otherwise. Kernels before 6.2 refuse that while it is up (`EBUSY`).
    ///
    /// # Errors
    /// [`NetlinkError`] naming the device.
    pub async fn set_name(&self, device: u32, name: &str) -> Result<(), NetlinkError> {
        let builder = LinkMessageBuilder::<LinkUnspec>::new().name(name);
        self.set(device, &format!("name {name}"), builder).await
    }

    /// Sets a device up (or down).
    ///
    /// # Errors
    /// [`NetlinkError`] naming the device.
    pub async fn set_up(&self, device: u32, up: bool) -> Result<(), NetlinkError> {
        let builder = LinkMessageBuilder::<LinkUnspec>::new();
        let builder = if up { builder.up() } else { builder.down() };
        self.set(device, if up { "up" } else { "down" }, builder)
            .await
    }

    /// Sets a device's MTU in bytes.
    ///
    /// # Errors
    /// [`NetlinkError`] naming the device.
    pub async fn set_mtu(&self, device: u32, mtu: u32) -> Result<(), NetlinkError> {
        let builder = LinkMessageBuilder::<LinkUnspec>::new().mtu(mtu);
        self.set(device, &format!("mtu {mtu}"), builder).await
    }

    /// Sets a device's link-layer address.
    ///
    /// # Errors
    /// [`NetlinkError`] naming the device.
    pub async fn set_mac(&self, device: u32, mac: Mac) -> Result<(), NetlinkError> {
        let builder = LinkMessageBuilder::<LinkUnspec>::new().address(mac.to_vec());
        let what = format!("address {}", super::format_mac(mac));
        self.set(device, &what, builder).await
    }

    /// Sets the group that a device belongs to.
    ///
    /// # Errors
    /// [`NetlinkError`] naming the device.
    pub async fn set_group(&self, device: u32, group: u32) -> Result<(), NetlinkError> {
        let builder = LinkMessageBuilder::<LinkUnspec>::new()
            .append_extra_attribute(LinkAttribute::Group(group));
        self.set(device, &format!("group {group}"), builder).await
    }

    /// Makes a device a port of a bridge, or of none.
    ///
    /// # Errors
    /// [`NetlinkError`] naming the device.
    pub async fn set_controller(
        &self,
        device: u32,
        controller: Option<u32>,
    ) -> Result<(), NetlinkError> {
        let builder =
            LinkMessageBuilder::<LinkUnspec>::new().controller(controller.unwrap_or_default());
        let what = match controller {
            Some(controller) => format!("controller #{controller}"),
            None => "no controller".to_owned(),
        };
        self.set(device, &what, builder).await
    }

    /// Sets a device's alias, a free text of at most 255 bytes.
    ///
    /// # Errors
    /// [`NetlinkError`] naming the device.
    pub async fn set_alias(&self, device: u32, alias: &str) -> Result<(), NetlinkError> {
        let builder = LinkMessageBuilder::<LinkUnspec>::new().alias(alias);
        self.set(device, &format!("alias {alias:?}"), builder).await
    }

    /// Deletes a device, with its peer if it is one end of a pair.
    ///
    /// # Errors
    /// [`NetlinkError`] naming the device; [`NetlinkError::is_absent`] if it was not there.
    pub async fn delete_link(&self, device: u32) -> Result<(), NetlinkError> {
        let message = LinkMessageBuilder::<LinkUnspec>::new()
            .index(device)
            .build();
        self.change_on(device, "delete", RouteNetlinkMessage::DelLink(message), 0)
            .await
    }

    /// The index of the device with this name.
    ///
    /// # Errors
    /// [`NetlinkError::NoDevice`] if there is none.
    pub async fn index_of(&self, name: &str) -> Result<u32, NetlinkError> {
        match self.link_by_name(name).await? {
            Some(link) => Ok(link.index),
            None => Err(NetlinkError::NoDevice {
                operation: format!("look up device {name}"),
            }),
        }
    }

    /// The name of a device for messages; its index if it has gone.
    pub(crate) async fn label(&self, device: u32) -> String {
        let link = self.link(device).await.ok().flatten();
        link.map_or_else(|| format!("#{device}"), |link| link.name)
    }

    async fn create(&self, name: &str, message: LinkMessage) -> Result<(), NetlinkError> {
        self.change(
            format_args!("create device {name}"),
            RouteNetlinkMessage::NewLink(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .await
    }

    async fn set(
        &self,
        device: u32,
        what: &str,
        builder: LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), NetlinkError> {
        let message = builder.index(device).build();
        let operation = format_args!("set {what}");
        self.change_on(device, operation, RouteNetlinkMessage::SetLink(message), 0)
            .await
    }
}

fn parse(entry: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = entry else {
        return None;
    };
    let mut link = Link {
        name: String::new(),
        index: message.header.index,
        mtu: 0,
        mac: None,
        up: message.header.flags.contains(LinkFlags::Up),
        carrier: message.header.flags.contains(LinkFlags::LowerUp),
        forwarding: false,
        port: None,
        group: 0,
        controller: None,
        kind: None,
        far_namespace: None,
        alias: None,
        vxlan: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok(),
            LinkAttribute::Group(group) => link.group = group,
            LinkAttribute::Controller(index) => link.controller = Some(index),
            LinkAttribute::LinkNetNsId(id) => link.far_namespace = Some(id),
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
                        LinkInfo::PortData(InfoPortData::BridgePort(data)) => {
                            let forwarding = InfoBridgePort::State(BridgePortState::Forwarding);
                            link.forwarding = data.contains(&forwarding);
                            link.port = Some(PortSettings::parse(&data));
                        }
                        LinkInfo::Data(InfoData::Vxlan(data)) => {
                            link.vxlan = Some(parse_vxlan(&data));
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(link)
}

fn parse_vxlan(data: &[InfoVxlan]) -> VxlanParameters {
    let mut parameters = VxlanParameters {
        vni: 0,
        local: None,
        port: 0,
        learning: false,
        udp_csum: false,
        link: None,
    };
    for attribute in data {
        match attribute {
            InfoVxlan::Id(vni) => parameters.vni = *vni,
            InfoVxlan::Local(address) => parameters.local = Some(*address),
            InfoVxlan::Port(port) => parameters.port = *port,
            InfoVxlan::Learning(learning) => parameters.learning = *learning,
            InfoVxlan::UDPCsum(filled) => parameters.udp_csum = *filled,
            InfoVxlan::Link(index) => parameters.link = Some(*index),
            _ => {}
        }
    }
    parameters
}
