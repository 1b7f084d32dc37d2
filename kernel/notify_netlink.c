// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The generic netlink family "ksmbd-notify": what the daemon says and is told.
 *
 * A handler never waits for a client's socket. Only the socket that has
 * registered may do more than that, until it is released, however the daemon
 * has died. The family lives in the initial network namespace alone, where a
 * port id names a socket.
 */

#include <linux/cred.h>
#include <linux/exportfs.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <net/genetlink.h>

#include "glob.h"
#include "notify.h"
#include "notify_release.h"
#include "notify_uapi.h"
#include "smb_common.h"
#include "smb2pdu.h"

/* So that modinfo can tell this ksmbd from one that cannot notify. */
MODULE_INFO(notify, KSMBD_NOTIFY_RELEASE);
/* DKMS of Debian 12 puts no module without one in another one's place. */
MODULE_VERSION(KSMBD_NOTIFY_RELEASE);

static struct genl_family notify_family;

static void *notify_put(struct sk_buff *msg, struct genl_info *info)
{
	return genlmsg_put_reply(msg, info, &notify_family, 0,
				 info->genlhdr->cmd);
}

static int notify_register_doit(struct sk_buff *skb, struct genl_info *info)
{
	struct nlattr *registrations;
	struct sk_buff *msg;
	void *hdr;
	int err;

	/*
	 * The daemon is given directories that anybody may watch, and names
	 * files by handles: it has to be one who could open and name them all,
	 * and who may use fanotify.
	 */
	if (!netlink_capable(skb, CAP_SYS_ADMIN) ||
	    !netlink_capable(skb, CAP_DAC_READ_SEARCH)) {
		GENL_SET_ERR_MSG(info,
				 "needs CAP_SYS_ADMIN, CAP_DAC_READ_SEARCH and CAP_NET_ADMIN");
		return -EPERM;
	}
	if (GENL_REQ_ATTR_CHECK(info, KSMBD_NOTIFY_A_REGISTER_VERSION))
		return -EINVAL;
	if (nla_get_u32(info->attrs[KSMBD_NOTIFY_A_REGISTER_VERSION]) !=
	    KSMBD_NOTIFY_PROTOCOL_VERSION) {
		GENL_SET_ERR_MSG_FMT(info, "this ksmbd speaks version %d",
				     KSMBD_NOTIFY_PROTOCOL_VERSION);
		return -EPROTONOSUPPORT;
	}

	msg = genlmsg_new(GENLMSG_DEFAULT_SIZE, GFP_KERNEL);
	if (!msg)
		return -ENOMEM;
	hdr = notify_put(msg, info);
	if (!hdr ||
	    nla_put_u32(msg, KSMBD_NOTIFY_A_REGISTER_VERSION,
			KSMBD_NOTIFY_PROTOCOL_VERSION) ||
	    nla_put_u32(msg, KSMBD_NOTIFY_A_REGISTER_MAX_BUFFER_LENGTH,
			SMB3_MAX_IOSIZE) ||
	    nla_put_u32(msg, KSMBD_NOTIFY_A_REGISTER_ACK_TIMEOUT,
			KSMBD_NOTIFY_ACK_TIMEOUT) ||
	    nla_put_string(msg, KSMBD_NOTIFY_A_REGISTER_RELEASE,
			   KSMBD_NOTIFY_RELEASE)) {
		nlmsg_free(msg);
		return -EMSGSIZE;
	}
	registrations = nla_reserve(msg, KSMBD_NOTIFY_A_REGISTER_REGISTRATIONS,
				    sizeof(u32));
	if (!registrations) {
		nlmsg_free(msg);
		return -EMSGSIZE;
	}
	genlmsg_end(msg, hdr);

	err = ksmbd_notify_register(info->snd_portid, nla_data(registrations));
	if (err) {
		GENL_SET_ERR_MSG(info, "another daemon is registered");
		nlmsg_free(msg);
		return err;
	}
	return genlmsg_reply(msg, info);
}

static int notify_put_item(struct sk_buff *msg, struct genl_info *info,
			   const struct ksmbd_notify_next *next, int fd)
{
	void *hdr = notify_put(msg, info);
	bool watch = next->type == KSMBD_NOTIFY_ITEM_TYPE_WATCH;
	bool request = next->type == KSMBD_NOTIFY_ITEM_TYPE_REQUEST;

	if (!hdr || nla_put_u32(msg, KSMBD_NOTIFY_A_ITEM_TYPE, next->type))
		return -EMSGSIZE;
	if (next->type != KSMBD_NOTIFY_ITEM_TYPE_CANCEL &&
	    nla_put_u64_64bit(msg, KSMBD_NOTIFY_A_ITEM_WATCH_ID, next->watch,
			      KSMBD_NOTIFY_A_ITEM_PAD))
		return -EMSGSIZE;
	if (next->request &&
	    nla_put_u64_64bit(msg, KSMBD_NOTIFY_A_ITEM_REQUEST_ID,
			      next->request, KSMBD_NOTIFY_A_ITEM_PAD))
		return -EMSGSIZE;
	if ((watch || request) &&
	    nla_put_u32(msg, KSMBD_NOTIFY_A_ITEM_BUFFER_LENGTH, next->length))
		return -EMSGSIZE;
	if (watch &&
	    (nla_put_s32(msg, KSMBD_NOTIFY_A_ITEM_FD, fd) ||
	     nla_put_u32(msg, KSMBD_NOTIFY_A_ITEM_COMPLETION_FILTER,
			 next->filter) ||
	     nla_put_string(msg, KSMBD_NOTIFY_A_ITEM_USER, next->user) ||
	     nla_put_string(msg, KSMBD_NOTIFY_A_ITEM_SHARE, next->share) ||
	     (next->tree &&
	      nla_put_flag(msg, KSMBD_NOTIFY_A_ITEM_WATCH_TREE)) ||
	     (next->rescan && nla_put_flag(msg, KSMBD_NOTIFY_A_ITEM_RESCAN))))
		return -EMSGSIZE;
	genlmsg_end(msg, hdr);
	return 0;
}

static int notify_next_doit(struct sk_buff *skb, struct genl_info *info)
{
	struct ksmbd_notify_next next;
	struct file *dir = NULL;
	struct sk_buff *msg;
	int err, fd = -1;

	/* First what may fail without an item in hand. */
	msg = genlmsg_new(GENLMSG_DEFAULT_SIZE, GFP_KERNEL);
	if (!msg)
		return -ENOMEM;
again:
	err = ksmbd_notify_next(info->snd_portid, &next);
	if (err) {
		nlmsg_free(msg);
		return err;
	}

	if (next.dir) {
		/* An open of its own: marks and reads do not meet ksmbd's. */
		dir = dentry_open(&next.dir->f_path,
				  O_RDONLY | O_DIRECTORY | O_NOATIME,
				  current_cred());
		fput(next.dir);
		fd = IS_ERR(dir) ? PTR_ERR(dir) :
				   get_unused_fd_flags(O_CLOEXEC);
		if (fd < 0) {
			if (!IS_ERR(dir))
				fput(dir);
			/* This watch fails, the queue goes on. */
			ksmbd_notify_armed(info->snd_portid, next.watch, -fd);
			goto again;
		}
	}

	err = notify_put_item(msg, info, &next, fd);
	if (err)
		nlmsg_free(msg);
	else
		err = genlmsg_reply(msg, info);
	if (err)
		ksmbd_notify_unpop(info->snd_portid);

	if (next.dir) {
		if (err) {
			put_unused_fd(fd);
			fput(dir);
		} else {
			fd_install(fd, dir);
		}
	}
	return err;
}

static int notify_armed_doit(struct sk_buff *skb, struct genl_info *info)
{
	u64 watch;
	int err;

	if (GENL_REQ_ATTR_CHECK(info, KSMBD_NOTIFY_A_ARMED_WATCH_ID) ||
	    GENL_REQ_ATTR_CHECK(info, KSMBD_NOTIFY_A_ARMED_ERRNO))
		return -EINVAL;
	watch = nla_get_u64(info->attrs[KSMBD_NOTIFY_A_ARMED_WATCH_ID]);
	err = nla_get_u32(info->attrs[KSMBD_NOTIFY_A_ARMED_ERRNO]);
	return ksmbd_notify_armed(info->snd_portid, watch, err);
}

static const struct nla_policy
notify_record_policy[KSMBD_NOTIFY_A_RECORD_MAX + 1] = {
	[KSMBD_NOTIFY_A_RECORD_ACTION] =
		NLA_POLICY_RANGE(NLA_U32, KSMBD_NOTIFY_ACTION_ADDED,
				 KSMBD_NOTIFY_ACTION_RENAMED_NEW_NAME),
	[KSMBD_NOTIFY_A_RECORD_NAME] =
		NLA_POLICY_RANGE(NLA_BINARY, 1, PATH_MAX - 1),
	[KSMBD_NOTIFY_A_RECORD_DIRECTORY] =
		NLA_POLICY_RANGE(NLA_BINARY, sizeof(struct file_handle),
				 sizeof(struct file_handle) + MAX_HANDLE_SZ),
};

static const struct file_handle *notify_handle(struct nlattr **tb)
{
	const struct nlattr *attr = tb[KSMBD_NOTIFY_A_RECORD_DIRECTORY];

	return attr ? nla_data(attr) : NULL;
}

/* The attributes of a change record, all there and well formed. */
static int notify_record(const struct nlattr *attr, struct genl_info *info,
			 struct nlattr **tb)
{
	const struct file_handle *fh;
	const struct nlattr *name;
	int err;

	err = nla_parse_nested(tb, KSMBD_NOTIFY_A_RECORD_MAX, attr,
			       notify_record_policy, info->extack);
	if (err)
		return err;
	name = tb[KSMBD_NOTIFY_A_RECORD_NAME];
	if (!tb[KSMBD_NOTIFY_A_RECORD_ACTION] || !name ||
	    memchr(nla_data(name), 0, nla_len(name))) {
		NL_SET_ERR_MSG_ATTR(info->extack, attr,
				    "a record needs an action and a name");
		return -EINVAL;
	}
	fh = notify_handle(tb);
	if (!fh != !memchr(nla_data(name), '/', nla_len(name)) ||
	    (fh && nla_len(tb[KSMBD_NOTIFY_A_RECORD_DIRECTORY]) !=
		   sizeof(*fh) + fh->handle_bytes)) {
		NL_SET_ERR_MSG_ATTR(info->extack, attr,
				    "a name below needs its directory's handle");
		return -EINVAL;
	}
	return 0;
}

static int notify_complete_doit(struct sk_buff *skb, struct genl_info *info)
{
	struct nlattr *tb[KSMBD_NOTIFY_A_RECORD_MAX + 1];
	struct ksmbd_notify_request *req;
	const struct nlattr *attr, *name;
	bool records = false;
	u32 status = 0, action;
	u64 id;
	size_t size = 0;
	int rem, err;

	if (GENL_REQ_ATTR_CHECK(info, KSMBD_NOTIFY_A_COMPLETE_REQUEST_ID))
		return -EINVAL;
	if (info->attrs[KSMBD_NOTIFY_A_COMPLETE_STATUS])
		status = nla_get_u32(info->attrs[KSMBD_NOTIFY_A_COMPLETE_STATUS]);

	/* A byte of UTF-8 makes at most one unit of UTF-16. */
	nlmsg_for_each_attr(attr, info->nlhdr, GENL_HDRLEN, rem) {
		if (nla_type(attr) != KSMBD_NOTIFY_A_COMPLETE_RECORD)
			continue;
		err = notify_record(attr, info, tb);
		if (err)
			return err;
		records = true;
		size += ALIGN(3 * sizeof(__le32) + sizeof(__le16) *
			      nla_len(tb[KSMBD_NOTIFY_A_RECORD_NAME]), 4);
	}
	if (records == !!status) {
		GENL_SET_ERR_MSG(info, "either records or a status");
		return -EINVAL;
	}

	id = nla_get_u64(info->attrs[KSMBD_NOTIFY_A_COMPLETE_REQUEST_ID]);
	req = ksmbd_notify_claim(info->snd_portid, id, size);
	if (IS_ERR(req))
		return PTR_ERR(req);
	nlmsg_for_each_attr(attr, info->nlhdr, GENL_HDRLEN, rem) {
		if (nla_type(attr) != KSMBD_NOTIFY_A_COMPLETE_RECORD ||
		    notify_record(attr, info, tb))
			continue;
		name = tb[KSMBD_NOTIFY_A_RECORD_NAME];
		action = nla_get_u32(tb[KSMBD_NOTIFY_A_RECORD_ACTION]);
		ksmbd_notify_add(req, action, nla_data(name), nla_len(name),
				 notify_handle(tb));
	}
	return ksmbd_notify_complete(req, status);
}

static int notify_put_cause(struct sk_buff *msg,
			    const struct ksmbd_notify_cause *cause)
{
	struct nlattr *nest = nla_nest_start(msg, KSMBD_NOTIFY_A_CAUSES_CAUSE);

	if (!nest ||
	    nla_put_u32(msg, KSMBD_NOTIFY_A_CAUSE_THREAD, cause->thread) ||
	    nla_put_u32(msg, KSMBD_NOTIFY_A_CAUSE_COMPLETION_FILTER,
			cause->filter) ||
	    nla_put(msg, KSMBD_NOTIFY_A_CAUSE_FILE,
		    sizeof(struct file_handle) + cause->handle_bytes,
		    &cause->handle_bytes) ||
	    nla_put_u64_64bit(msg, KSMBD_NOTIFY_A_CAUSE_BEGUN, cause->begun,
			      KSMBD_NOTIFY_A_CAUSE_PAD) ||
	    nla_put_u64_64bit(msg, KSMBD_NOTIFY_A_CAUSE_ENDED, cause->ended,
			      KSMBD_NOTIFY_A_CAUSE_PAD))
		return -EMSGSIZE;
	nla_nest_end(msg, nest);
	return 0;
}

static int notify_causes_doit(struct sk_buff *skb, struct genl_info *info)
{
	const size_t max = KSMBD_NOTIFY_MAX_CAUSES;
	struct ksmbd_notify_cause *causes;
	struct sk_buff *msg;
	unsigned int i, n;
	int err = -ENOMEM;
	void *hdr;
	u64 lost;

	if (!ksmbd_notify_registered(info->snd_portid))
		return -EPERM;
	/* An attribute header and padding at the most for each field. */
	causes = kvmalloc_array(max, sizeof(*causes), GFP_KERNEL);
	msg = genlmsg_new(max * (sizeof(*causes) + 8 * NLA_HDRLEN), GFP_KERNEL);
	if (!causes || !msg)
		goto out;

	err = -EMSGSIZE;
	n = ksmbd_notify_causes(causes, &lost);
	hdr = notify_put(msg, info);
	if (!hdr ||
	    (lost && nla_put_u64_64bit(msg, KSMBD_NOTIFY_A_CAUSES_LOST, lost,
				       KSMBD_NOTIFY_A_CAUSES_PAD)))
		goto out;
	for (i = 0; i < n; i++)
		if (notify_put_cause(msg, &causes[i]))
			goto out;
	genlmsg_end(msg, hdr);
	err = genlmsg_reply(msg, info);
	msg = NULL;
out:
	nlmsg_free(msg);
	kvfree(causes);
	return err;
}

static const struct nla_policy
notify_register_policy[KSMBD_NOTIFY_A_REGISTER_MAX + 1] = {
	[KSMBD_NOTIFY_A_REGISTER_VERSION] = { .type = NLA_U32 },
};

static const struct nla_policy
notify_armed_policy[KSMBD_NOTIFY_A_ARMED_MAX + 1] = {
	[KSMBD_NOTIFY_A_ARMED_WATCH_ID] = { .type = NLA_U64 },
	[KSMBD_NOTIFY_A_ARMED_ERRNO] = NLA_POLICY_RANGE(NLA_U32, 1, MAX_ERRNO),
};

static const struct nla_policy
notify_complete_policy[KSMBD_NOTIFY_A_COMPLETE_MAX + 1] = {
	[KSMBD_NOTIFY_A_COMPLETE_REQUEST_ID] = { .type = NLA_U64 },
	[KSMBD_NOTIFY_A_COMPLETE_STATUS] =
		NLA_POLICY_RANGE(NLA_U32, KSMBD_NOTIFY_STATUS_ENUM_DIR,
				 KSMBD_NOTIFY_STATUS_DELETE_PENDING),
	[KSMBD_NOTIFY_A_COMPLETE_RECORD] =
		NLA_POLICY_NESTED(notify_record_policy),
};

static const struct genl_split_ops notify_ops[] = {
	{
		.cmd		= KSMBD_NOTIFY_CMD_REGISTER,
		.doit		= notify_register_doit,
		.policy		= notify_register_policy,
		.maxattr	= KSMBD_NOTIFY_A_REGISTER_MAX,
		.flags		= GENL_ADMIN_PERM | GENL_CMD_CAP_DO,
	},
	{
		.cmd		= KSMBD_NOTIFY_CMD_NEXT,
		.doit		= notify_next_doit,
		.flags		= GENL_ADMIN_PERM | GENL_CMD_CAP_DO,
	},
	{
		.cmd		= KSMBD_NOTIFY_CMD_ARMED,
		.doit		= notify_armed_doit,
		.policy		= notify_armed_policy,
		.maxattr	= KSMBD_NOTIFY_A_ARMED_MAX,
		.flags		= GENL_ADMIN_PERM | GENL_CMD_CAP_DO,
	},
	{
		.cmd		= KSMBD_NOTIFY_CMD_COMPLETE,
		.doit		= notify_complete_doit,
		.policy		= notify_complete_policy,
		.maxattr	= KSMBD_NOTIFY_A_COMPLETE_MAX,
		.flags		= GENL_ADMIN_PERM | GENL_CMD_CAP_DO,
	},
	{
		.cmd		= KSMBD_NOTIFY_CMD_CAUSES,
		.doit		= notify_causes_doit,
		.flags		= GENL_ADMIN_PERM | GENL_CMD_CAP_DO,
	},
};

static const struct genl_multicast_group notify_groups[] = {
	{ .name = KSMBD_NOTIFY_MCGRP_NOTIFYD, .flags = GENL_MCAST_CAP_NET_ADMIN },
};

static struct genl_family notify_family __ro_after_init = {
	.name			= KSMBD_NOTIFY_FAMILY_NAME,
	.version		= KSMBD_NOTIFY_FAMILY_VERSION,
	.module			= THIS_MODULE,
	/* Opening a directory may take long: not under genl_mutex. */
	.parallel_ops		= true,
	.split_ops		= notify_ops,
	.n_split_ops		= ARRAY_SIZE(notify_ops),
	.mcgrps			= notify_groups,
	.n_mcgrps		= ARRAY_SIZE(notify_groups),
};

/**
 * ksmbd_notify_ring() - tell the daemon that something is queued
 *
 * Return:	0 or a negative errno; only -ENOMEM is worth another try
 */
int ksmbd_notify_ring(void)
{
	struct sk_buff *msg;
	void *hdr;

	msg = genlmsg_new(0, GFP_KERNEL);
	if (!msg)
		return -ENOMEM;
	hdr = genlmsg_put(msg, 0, 0, &notify_family, 0, KSMBD_NOTIFY_CMD_READY);
	if (!hdr) {
		nlmsg_free(msg);
		return -EMSGSIZE;
	}
	genlmsg_end(msg, hdr);
	return genlmsg_multicast(&notify_family, msg, 0, 0, GFP_KERNEL);
}

static int notify_netlink_event(struct notifier_block *nb, unsigned long event,
				void *data)
{
	struct netlink_notify *n = data;

	if (event == NETLINK_URELEASE && n->protocol == NETLINK_GENERIC &&
	    net_eq(n->net, &init_net))
		ksmbd_notify_unregister(n->portid);
	return NOTIFY_DONE;
}

static struct notifier_block notify_netlink_notifier = {
	.notifier_call	= notify_netlink_event,
};

int ksmbd_notify_netlink_init(void)
{
	int err;

	err = netlink_register_notifier(&notify_netlink_notifier);
	if (err)
		return err;
	err = genl_register_family(&notify_family);
	if (err)
		netlink_unregister_notifier(&notify_netlink_notifier);
	return err;
}

void ksmbd_notify_netlink_exit(void)
{
	genl_unregister_family(&notify_family);
	netlink_unregister_notifier(&notify_netlink_notifier);
}
