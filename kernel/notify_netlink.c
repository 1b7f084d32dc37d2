// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The generic netlink family "ksmbd-notify": the conversation with the daemon.
 *
 * No handler waits for a client's socket or touches a filesystem. All but
 * REGISTER is only for the socket that has registered, until the kernel
 * releases it, however the daemon died. The family exists in the initial
 * network namespace alone, where a port id identifies a socket.
 */

#include <linux/cred.h>
#include <linux/exportfs.h>
#include <linux/fdtable.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/kdev_t.h>
#include <linux/slab.h>
#include <net/genetlink.h>

#include "notify_impl.h"
#include "notify_release.h"
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

/*
 * The daemon is given directories that anybody may watch, and names files by
 * handles: it has to be one who could open and name them all, and who may use
 * fanotify. Each message is looked at: when the daemon has closed its socket,
 * another one may have its port id before it is found to be gone.
 */
static int notify_pre_doit(const struct genl_split_ops *ops,
			   struct sk_buff *skb, struct genl_info *info)
{
	if (netlink_capable(skb, CAP_SYS_ADMIN) &&
	    netlink_capable(skb, CAP_DAC_READ_SEARCH))
		return 0;
	GENL_SET_ERR_MSG(info,
			 "needs CAP_SYS_ADMIN, CAP_DAC_READ_SEARCH and CAP_NET_ADMIN");
	return -EPERM;
}

static int notify_register_doit(struct sk_buff *skb, struct genl_info *info)
{
	struct nlattr *registrations;
	struct sk_buff *msg;
	void *hdr;
	int err;

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
	registrations = hdr ? nla_reserve(msg, KSMBD_NOTIFY_A_REGISTER_REGISTRATIONS,
					  sizeof(u32)) : NULL;
	if (!registrations ||
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
	genlmsg_end(msg, hdr);

	err = ksmbd_notify_register(info->snd_portid, nla_data(registrations));
	if (err) {
		GENL_SET_ERR_MSG(info, "another daemon is registered");
		nlmsg_free(msg);
		return err;
	}
	return genlmsg_reply(msg, info);
}

/*
 * Items that go in one reply, which has room for so many with names of a usual
 * length. It takes no more than a page: mostly there is one item, and the kernel
 * may clear what it allocates.
 */
#define NOTIFY_NEXT_ITEMS	16

static int notify_put_watch(struct sk_buff *msg,
			    const struct ksmbd_notify_next *next)
{
	const struct notify_watch *watch = item_watch(next->item);
	const struct super_block *sb = file_inode(next->dir)->i_sb;
	char filesystem[64];

	snprintf(filesystem, sizeof(filesystem), "%s%s%s", sb->s_type->name,
		 sb->s_subtype ? "." : "", sb->s_subtype ?: "");
	if (nla_put_s32(msg, KSMBD_NOTIFY_A_ITEM_FD, next->fd) ||
	    nla_put_u32(msg, KSMBD_NOTIFY_A_ITEM_COMPLETION_FILTER,
			watch->filter) ||
	    nla_put_u32(msg, KSMBD_NOTIFY_A_ITEM_DEVICE,
			new_encode_dev(sb->s_dev)) ||
	    nla_put_string(msg, KSMBD_NOTIFY_A_ITEM_FILESYSTEM, filesystem) ||
	    nla_put_u64_64bit(msg, KSMBD_NOTIFY_A_ITEM_CLIENT, watch->client,
			      KSMBD_NOTIFY_A_ITEM_PAD) ||
	    nla_put_string(msg, KSMBD_NOTIFY_A_ITEM_USER, watch->user) ||
	    nla_put_string(msg, KSMBD_NOTIFY_A_ITEM_SHARE, watch->share) ||
	    (watch->tree &&
	     nla_put_flag(msg, KSMBD_NOTIFY_A_ITEM_WATCH_TREE)) ||
	    (next->rescan && nla_put_flag(msg, KSMBD_NOTIFY_A_ITEM_RESCAN)))
		return -EMSGSIZE;
	return 0;
}

static int notify_put_item(struct sk_buff *msg,
			   const struct ksmbd_notify_next *next)
{
	struct nlattr *nest = nla_nest_start(msg, KSMBD_NOTIFY_A_ITEMS_ITEM);
	bool watch = next->type == KSMBD_NOTIFY_ITEM_TYPE_WATCH;
	bool request = next->type == KSMBD_NOTIFY_ITEM_TYPE_REQUEST;
	bool cancel = next->type == KSMBD_NOTIFY_ITEM_TYPE_CANCEL;
	u64 watch_id = next->item->id;
	u32 length = 0;

	if (watch)
		length = item_watch(next->item)->ceiling;
	if (request || cancel) {
		watch_id = item_request(next->item)->watch->item.id;
		length = item_request(next->item)->limit;
	}
	if (!nest || nla_put_u32(msg, KSMBD_NOTIFY_A_ITEM_TYPE, next->type) ||
	    nla_put_u64_64bit(msg, KSMBD_NOTIFY_A_ITEM_WATCH_ID, watch_id,
			      KSMBD_NOTIFY_A_ITEM_PAD) ||
	    ((request || cancel) &&
	     nla_put_u64_64bit(msg, KSMBD_NOTIFY_A_ITEM_REQUEST_ID,
			       next->item->id, KSMBD_NOTIFY_A_ITEM_PAD)) ||
	    ((watch || request) &&
	     nla_put_u32(msg, KSMBD_NOTIFY_A_ITEM_BUFFER_LENGTH, length)) ||
	    (watch && notify_put_watch(msg, next)))
		goto cancel;
	nla_nest_end(msg, nest);
	return 0;

cancel:
	nla_nest_cancel(msg, nest);
	return -EMSGSIZE;
}

/*
 * The daemon gets the watched directory as one that is not open: no method of
 * the filesystem is called. It can read there no more than it may by itself.
 */
static int notify_install(struct ksmbd_notify_next *next)
{
	struct file *dir;
	int fd;

	dir = dentry_open(&next->dir->f_path, O_PATH | O_DIRECTORY,
			  current_cred());
	if (IS_ERR(dir))
		return PTR_ERR(dir);
	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0) {
		fput(dir);
		return fd;
	}
	fd_install(fd, dir);
	next->fd = fd;
	return 0;
}

static int notify_next_doit(struct sk_buff *skb, struct genl_info *info)
{
	struct ksmbd_notify_next *next;
	struct sk_buff *msg;
	int i, n, put, err;
	bool all = false;
	void *hdr;

	/* Allocate first: if that fails, no item has to be given back. */
	next = kcalloc(NOTIFY_NEXT_ITEMS, sizeof(*next), GFP_KERNEL);
	msg = genlmsg_new(GENLMSG_DEFAULT_SIZE, GFP_KERNEL);
	hdr = msg ? notify_put(msg, info) : NULL;
	if (!next || !hdr) {
		nlmsg_free(msg);
		kfree(next);
		return -ENOMEM;
	}

	n = ksmbd_notify_next(info->snd_portid, next, NOTIFY_NEXT_ITEMS,
			      &all);
	err = min(n, 0);
	for (put = 0; put < n; put++) {
		if (next[put].dir) {
			err = notify_install(&next[put]);
			/* This watch fails, the others go on. */
			if (err)
				ksmbd_notify_ack(info->snd_portid,
						 next[put].item->id, -err);
			if (err)
				continue;
		}
		err = notify_put_item(msg, &next[put]);
		if (err)
			break;
	}
	if (put)
		err = 0;
	if (!err) {
		/* Without this flag the daemon asks again. */
		if (all && put == n)
			nla_put_flag(msg, KSMBD_NOTIFY_A_ITEMS_ALL);
		genlmsg_end(msg, hdr);
		/* The descriptors are installed before the reply can be read. */
		err = genlmsg_reply(msg, info);
		if (err)
			put = 0;
	} else {
		nlmsg_free(msg);
	}

	for (i = put; i < n; i++)
		if (next[i].fd >= 0)
			close_fd(next[i].fd);
	for (i = 0; i < n; i++)
		if (next[i].dir)
			fput(next[i].dir);
	for (i = 0; i < min(put, n); i++)
		notify_item_put(next[i].item);
	if (put < n)
		ksmbd_notify_unnext(info->snd_portid, next + put, n - put);
	kfree(next);
	return err;
}

static int notify_ack_doit(struct sk_buff *skb, struct genl_info *info)
{
	int err = 0;

	if (GENL_REQ_ATTR_CHECK(info, KSMBD_NOTIFY_A_ACK_ID))
		return -EINVAL;
	if (info->attrs[KSMBD_NOTIFY_A_ACK_ERRNO])
		err = nla_get_u32(info->attrs[KSMBD_NOTIFY_A_ACK_ERRNO]);
	return ksmbd_notify_ack(info->snd_portid,
				nla_get_u64(info->attrs[KSMBD_NOTIFY_A_ACK_ID]),
				err);
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

/* Adds a change record, whose attributes must be all there and well formed. */
static int notify_add_record(struct notify_told *told,
			     const struct nlattr *attr, struct genl_info *info)
{
	struct notify_record *record = (void *)told->records + told->length;
	struct nlattr *tb[KSMBD_NOTIFY_A_RECORD_MAX + 1];
	const struct nlattr *name, *dir;
	const struct file_handle *fh;
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
	dir = tb[KSMBD_NOTIFY_A_RECORD_DIRECTORY];
	fh = dir ? nla_data(dir) : NULL;
	if (!dir != !memchr(nla_data(name), '/', nla_len(name)) ||
	    (dir && nla_len(dir) != sizeof(*fh) + fh->handle_bytes)) {
		NL_SET_ERR_MSG_ATTR(info->extack, attr,
				    "a name below needs its directory's handle");
		return -EINVAL;
	}

	record->action = nla_get_u32(tb[KSMBD_NOTIFY_A_RECORD_ACTION]);
	record->name_length = nla_len(name);
	record->handle_length = dir ? nla_len(dir) : 0;
	if (dir) {
		memcpy(record->data, fh, nla_len(dir));
		told->below = true;
	}
	memcpy(record->data + ALIGN(record->handle_length, 4), nla_data(name),
	       nla_len(name));
	record->size = sizeof(*record) + ALIGN(record->handle_length, 4) +
		       ALIGN(record->name_length, 4);
	told->length += record->size;
	/* A byte of UTF-8 makes at most one unit of UTF-16. */
	told->room += ALIGN(sizeof(struct notify_information) +
			    sizeof(__le16) * nla_len(name), 4);
	return 0;
}

static int notify_complete_doit(struct sk_buff *skb, struct genl_info *info)
{
	const struct nlattr *attr;
	struct notify_told *told;
	int rem, err = 0;
	u64 id;

	if (GENL_REQ_ATTR_CHECK(info, KSMBD_NOTIFY_A_COMPLETE_REQUEST_ID))
		return -EINVAL;
	id = nla_get_u64(info->attrs[KSMBD_NOTIFY_A_COMPLETE_REQUEST_ID]);

	/* A record takes no more bytes than the attributes that it is made of. */
	BUILD_BUG_ON(sizeof(struct notify_record) > 3 * NLA_HDRLEN + sizeof(u32));
	told = kvzalloc(struct_size(told, records,
				    nlmsg_attrlen(info->nlhdr, GENL_HDRLEN)),
			GFP_KERNEL);
	if (!told)
		return -ENOMEM;
	if (info->attrs[KSMBD_NOTIFY_A_COMPLETE_STATUS])
		told->status = nla_get_u32(info->attrs[KSMBD_NOTIFY_A_COMPLETE_STATUS]);
	nlmsg_for_each_attr(attr, info->nlhdr, GENL_HDRLEN, rem)
		if (!err && nla_type(attr) == KSMBD_NOTIFY_A_COMPLETE_RECORD)
			err = notify_add_record(told, attr, info);
	if (!err && !told->length == !told->status) {
		GENL_SET_ERR_MSG(info, "either records or a status");
		err = -EINVAL;
	}
	if (!err)
		err = ksmbd_notify_complete(info->snd_portid, id, told);
	if (err)
		notify_told_free(told);
	return err;
}

static int notify_causes_doit(struct sk_buff *skb, struct genl_info *info)
{
	struct sk_buff *msg;
	void *hdr;

	if (!ksmbd_notify_registered(info->snd_portid))
		return -EPERM;
	/* An attribute header and padding at the most for each field. */
	msg = genlmsg_new(KSMBD_NOTIFY_MAX_CAUSES *
			  (sizeof(struct ksmbd_notify_cause) + 8 * NLA_HDRLEN),
			  GFP_KERNEL);
	hdr = msg ? notify_put(msg, info) : NULL;
	if (!hdr) {
		nlmsg_free(msg);
		return -ENOMEM;
	}
	ksmbd_notify_put_causes(msg);
	genlmsg_end(msg, hdr);
	return genlmsg_reply(msg, info);
}

static const struct nla_policy
notify_register_policy[KSMBD_NOTIFY_A_REGISTER_MAX + 1] = {
	[KSMBD_NOTIFY_A_REGISTER_VERSION] = { .type = NLA_U32 },
};

static const struct nla_policy
notify_ack_policy[KSMBD_NOTIFY_A_ACK_MAX + 1] = {
	[KSMBD_NOTIFY_A_ACK_ID] = { .type = NLA_U64 },
	[KSMBD_NOTIFY_A_ACK_ERRNO] = NLA_POLICY_RANGE(NLA_U32, 1, MAX_ERRNO),
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
		.pre_doit	= notify_pre_doit,
		.doit		= notify_register_doit,
		.policy		= notify_register_policy,
		.maxattr	= KSMBD_NOTIFY_A_REGISTER_MAX,
		.flags		= GENL_ADMIN_PERM | GENL_CMD_CAP_DO,
	},
	{
		.cmd		= KSMBD_NOTIFY_CMD_NEXT,
		.pre_doit	= notify_pre_doit,
		.doit		= notify_next_doit,
		.flags		= GENL_ADMIN_PERM | GENL_CMD_CAP_DO,
	},
	{
		.cmd		= KSMBD_NOTIFY_CMD_ACK,
		.pre_doit	= notify_pre_doit,
		.doit		= notify_ack_doit,
		.policy		= notify_ack_policy,
		.maxattr	= KSMBD_NOTIFY_A_ACK_MAX,
		.flags		= GENL_ADMIN_PERM | GENL_CMD_CAP_DO,
	},
	{
		.cmd		= KSMBD_NOTIFY_CMD_COMPLETE,
		.pre_doit	= notify_pre_doit,
		.doit		= notify_complete_doit,
		.policy		= notify_complete_policy,
		.maxattr	= KSMBD_NOTIFY_A_COMPLETE_MAX,
		.flags		= GENL_ADMIN_PERM | GENL_CMD_CAP_DO,
	},
	{
		.cmd		= KSMBD_NOTIFY_CMD_CAUSES,
		.pre_doit	= notify_pre_doit,
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
